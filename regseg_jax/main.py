"""Trains or evaluates.

python -m regseg_jax.main --config=configs/camvid.py [--workdir=RUN] [--mode=eval]

--mode=eval --weights=FILE_OR_NAME evaluates exported or shipped weights in place of a run.
"""

import sys

from absl import flags
from ml_collections import config_flags

from regseg_jax.runs.evaluate import evaluate_run, evaluate_weights
from regseg_jax.runs.train import train
from regseg_jax.runtime.command import run_command
from regseg_jax.runtime.recipes import default_workdir
from regseg_jax.training.sharding import join_processes


def main(argv: list[str]) -> None:
    """Starts the run that the flags describe."""
    values = flags.FLAGS
    if argv:
        raise ValueError(f"unexpected arguments {argv}; flags start with --")
    if values.weights and values.mode == "train":
        raise ValueError(
            f"--weights={values.weights} is of --mode=eval; to train from them, set "
            f"--config.init_from={values.weights}"
        )
    if values.multi_host:
        join_processes()
    recipe = config_flags.get_config_filename(values["config"])
    workdir = values.workdir or default_workdir(values.weights or recipe)
    if values.weights:
        evaluate_weights(values.config, values.weights, workdir)
    elif values.mode == "eval":
        evaluate_run(values.config, workdir)
    elif train(values.config, workdir) is None:
        sys.exit(values.stopped_exit_code)


def run() -> None:
    """Defines the flags and runs the command."""
    config_flags.DEFINE_config_file("config", None, "The recipe: a name or a Python file.")
    flags.DEFINE_string(
        "workdir", None, "The run's folder: checkpoints, logs, pictures; runs/RECIPE by default."
    )
    flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train, or evaluate a run's best.")
    flags.DEFINE_string("weights", None, "Evaluate these, not a run: a file, or a shipped name.")
    flags.DEFINE_bool(
        "multi_host", False, "One of several processes: set by the scripts in launch/."
    )
    flags.DEFINE_integer(
        "stopped_exit_code",
        0,
        "Of a training that SIGTERM stopped; schedulers may take 0 for complete.",
        lower_bound=0,
        upper_bound=255,
    )
    flags.mark_flag_as_required("config")
    run_command(main, "regseg_jax.main")


if __name__ == "__main__":
    run()
