"""Trains or evaluates.

python -m regseg_jax.main --config=configs/camvid.py --workdir=RUN [--mode=eval]
"""

import jax
from absl import flags
from ml_collections import config_flags

from regseg_jax.command import run_command
from regseg_jax.evaluate import evaluate_run
from regseg_jax.train import train

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, a file of configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder: checkpoints, logs, pictures.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train, or evaluate a run's best.")
_MULTI_HOST = flags.DEFINE_bool(
    "multi_host", False, "One of several processes: set by the scripts in launch/."
)


def main(argv: list[str]) -> None:
    """Starts the run that the flags describe."""
    if argv:
        raise ValueError(f"unexpected arguments {argv}; flags start with --")
    if _MULTI_HOST.value:
        jax.distributed.initialize()
    if _MODE.value == "train":
        train(_CONFIG.value, _WORKDIR.value)
    else:
        evaluate_run(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    run_command(main, "regseg_jax.main")
