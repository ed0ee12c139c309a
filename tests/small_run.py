"""A run small enough to be started many times: `python small_run.py WORKDIR [KEY=VALUE ...]`.

It is the training command on the embedded data set, except for the small backbones that are put
into the table here.
"""

import os
import sys

# Training never needs PyTorch, which some libraries import where they find it, for seconds.
sys.modules["torch"] = None

from ml_collections import ConfigDict

from regseg_jax.config import create_default_config
from regseg_jax.models import variants

_block = variants.Block
variants.BACKBONES["small"] = variants.Backbone(
    stages=(
        ("stage4", (_block(16, stride=2),)),
        ("stage8", (_block(16, stride=2),)),
        ("stage16", (_block(32, (1, 2), stride=2),)),
    )
)
variants.BACKBONES["smalldilated"] = variants.Backbone(  # two blocks more, whose rates differ
    stages=(
        *variants.BACKBONES["small"].stages[:2],
        ("stage16", (_block(32, stride=2), _block(32, (1, 2)), _block(64, (1, 4)))),
    )
)


def create_small_config() -> ConfigDict:
    """12 steps of 4 scenes, a checkpoint every 3, an evaluation every 6."""
    config = create_default_config()
    config.model = "small_decoder12"
    config.global_batch_size = 4
    config.num_epochs = 2
    config.log_every_steps = 2
    config.checkpoint_every_steps = 3
    config.data.source = "synthetic"
    config.data.synthetic_size = (48, 64)
    config.data.synthetic_train_examples = 25
    config.data.synthetic_eval_examples = 5
    config.data.num_workers = 0
    config.optimizer.warmup_steps = 2
    config.augment.crop_size = (32, 48)
    config.augment.min_shorter_side = 24
    config.augment.max_shorter_side = 64
    config.eval.batch_size = 4
    config.eval.every_epochs = 1
    config.eval.num_panels = 1
    return config


def main(argv: list[str]) -> None:
    config = create_small_config()
    workdir, *overrides = argv
    for override in overrides:
        key, value = override.split("=")
        config.update_from_flattened_dict({key: type(_get(config, key))(value)})
    from regseg_jax.runs.train import train

    if hasattr(os, "sched_setaffinity"):  # not on macOS; before JAX starts its threads
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    if "JAX_PROCESS_ID" in os.environ:
        from regseg_jax.training.sharding import join_processes

        join_processes()
    train(config, workdir)


def _get(config: ConfigDict, key: str) -> object:
    for part in key.split("."):
        config = config[part]
    return config


if __name__ == "__main__":
    from regseg_jax.runtime.command import run_command

    run_command(main, "small_run")
