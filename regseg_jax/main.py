"""Trains or evaluates.

python -m regseg_jax.main --config=configs/camvid.py --workdir=RUN [--mode=eval]
"""

import os

import jax
from absl import flags
from ml_collections import config_flags

from regseg_jax.command import run_command
from regseg_jax.evaluate import evaluate_run
from regseg_jax.train import train


def main(argv: list[str]) -> None:
    """Starts the run that the flags describe."""
    values = flags.FLAGS
    if argv:
        raise ValueError(f"unexpected arguments {argv}; flags start with --")
    if values.multi_host:
        _join_processes()
    if values.mode == "train":
        train(values.config, values.workdir)
    else:
        evaluate_run(values.config, values.workdir)


def _join_processes() -> None:
    """Connects to the other processes of the run.

    Slurm, Kubernetes and TPU pods are recognised by JAX itself; elsewhere JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID say who is who.
    """
    numbers = [os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")]
    num_processes, process_id = (None if number is None else int(number) for number in numbers)
    jax.distributed.initialize(num_processes=num_processes, process_id=process_id)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The recipe, a file of configs/.")
    flags.DEFINE_string("workdir", None, "The run's folder: checkpoints, logs, pictures.")
    flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train, or evaluate a run's best.")
    flags.DEFINE_bool(
        "multi_host", False, "One of several processes: set by the scripts in launch/."
    )
    flags.mark_flags_as_required(["config", "workdir"])
    run_command(main, "regseg_jax.main")
