#!/usr/bin/env bash
# Trains on a Cloud TPU pod slice: copies the project to every host and starts it on all of them.
# JAX finds the other hosts through the TPU's metadata.
#
#   ZONE=us-central2-b launch/tpu_pod.sh TPU_NAME --config=configs/camvid_scratch.py \
#     --workdir=/mnt/shared/RUN --config.data.data_dir=/mnt/disks/camvid
#
# The data has to be on every host at the same path. The workdir has to be on a shared mount.
set -euo pipefail
cd "$(dirname "$0")/.."

tpu=${1:?"usage: ZONE=... launch/tpu_pod.sh TPU_NAME --config=... --workdir=..."}
zone=${ZONE:?"set ZONE to the TPU's zone"}
shift
arguments=$(printf ' %q' "$@")

git archive --prefix=regseg_jax/ -o /tmp/regseg_jax.tar HEAD
gcloud compute tpus tpu-vm scp /tmp/regseg_jax.tar "$tpu": --worker=all --zone="$zone"
gcloud compute tpus tpu-vm ssh "$tpu" --worker=all --zone="$zone" --command="
  set -e
  tar xf regseg_jax.tar && cd regseg_jax
  python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt 'jax[tpu]'
  .venv/bin/python -m regseg_jax.main --multi_host $arguments"
