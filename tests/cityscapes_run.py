"""The Cityscapes recipe for 30 steps: `python cityscapes_run.py WORKDIR DATA_DIR`.

It is configs/cityscapes.py except for a small model, float32 and batches of 2, which a CPU can run:
sizes, crops and class-uniform sampling are the recipe's.
"""

import os

import small_run  # puts the small backbone into the table
from ml_collections import ConfigDict

from regseg_jax.runtime.recipes import load_recipe


def create_config(data_dir: str) -> ConfigDict:
    config = load_recipe("cityscapes")
    config.model = "small_decoder12"
    config.precision = "float32"
    config.global_batch_size = 2
    config.num_epochs = 2
    config.log_every_steps = 1
    config.checkpoint_every_steps = 3
    config.data.data_dir = data_dir
    config.data.num_workers = 0
    config.eval.batch_size = 1
    config.eval.every_epochs = 2
    config.eval.num_panels = 1
    return config


def main(argv: list[str]) -> None:
    from regseg_jax.runs.train import train

    workdir, data_dir = argv
    if hasattr(os, "sched_setaffinity"):  # not on macOS; before JAX starts its threads
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    train(create_config(data_dir), workdir)


if __name__ == "__main__":
    from regseg_jax.runtime.command import run_command

    assert small_run
    run_command(main, "cityscapes_run")
