#!/usr/bin/env bash
# Trains on a Cloud TPU pod slice: copies the project to every host and starts it on all of them.
# JAX finds the other hosts through the TPU's metadata.
#
#   ZONE=us-central2-b launch/tpu_pod.sh TPU_NAME --config=configs/camvid_scratch.py \
#     --workdir=/mnt/shared/RUN --config.data.data_dir=/mnt/disks/camvid
#
# The data has to be on every host at the same path. The workdir has to be on a shared mount. The
# hosts need Python 3.11 to 3.13; set PYTHON where theirs is not called python3. What is not
# committed is not copied. Batches, config.eval.batch_size too, have to divide over all chips.
# What of this was tried: docs/launch.md.
set -euo pipefail
cd "$(dirname "$0")/.."

tpu=${1:?"usage: ZONE=... launch/tpu_pod.sh TPU_NAME --config=... --workdir=..."}
zone=${ZONE:?"set ZONE to the TPU's zone"}
shift
arguments=$(printf ' %q' "$@")

if [ -n "$(git status --porcelain)" ]; then
  echo "warning: what is not committed is not copied:" >&2
  git status --short >&2
fi
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
git archive --prefix=regseg_jax/ -o "$folder/regseg_jax.tar" HEAD
gcloud compute tpus tpu-vm scp "$folder/regseg_jax.tar" "$tpu": --worker=all --zone="$zone"
gcloud compute tpus tpu-vm ssh "$tpu" --worker=all --zone="$zone" --command="
  set -e
  tar xf regseg_jax.tar && cd regseg_jax
  ${PYTHON:-python3} -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), sys.version'
  ${PYTHON:-python3} -m venv .venv && .venv/bin/pip install -q -r requirements.txt 'jax[tpu]'
  .venv/bin/python -m regseg_jax.main --multi_host $arguments"
