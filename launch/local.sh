#!/usr/bin/env bash
# Trains on one machine with one process per GPU. (One process drives all GPUs of a machine as well:
# then no script is needed. Separate processes decode images in parallel without sharing a GIL.)
#
#   launch/local.sh 4 --config=configs/camvid_scratch.py --workdir=RUN --config.data.data_dir=DIR
#
# Batches, config.eval.batch_size too, have to divide over all GPUs.
set -euo pipefail
cd "$(dirname "$0")/.."

num_processes=${1:?"usage: launch/local.sh NUM_PROCESSES --config=... --workdir=..."}
shift
export JAX_COORDINATOR_ADDRESS=localhost:${PORT:-12345}
export JAX_NUM_PROCESSES=$num_processes

# SIGTERM reaches every process: all save and end together.
trap 'trap "" INT TERM; kill -TERM $(jobs -p) 2>/dev/null; wait; exit 143' INT TERM
for ((i = 0; i < num_processes; i++)); do
  JAX_PROCESS_ID=$i CUDA_VISIBLE_DEVICES=$i \
    "${PYTHON:-python3}" -m regseg_jax.main --multi_host "$@" &
done
# The first process to fail ends the others, which would wait for it.
for ((i = 0; i < num_processes; i++)); do
  wait -n || { kill $(jobs -p) 2>/dev/null; exit 1; }
done
