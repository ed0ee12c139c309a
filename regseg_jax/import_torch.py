"""Makes a PyTorch or safetensors file the first checkpoint of a run.

The run can be evaluated, fine-tuned and exported.

python -m regseg_jax.import_torch --input=FILE.pth --model=exp48_decoder26 --num_classes=19 \
    --workdir=RUN [--config=configs/camvid.py]

The run's config is that of --config, or the defaults with the data set of that many classes.
Training with the same config in the same workdir fine-tunes the weights.
"""

import dataclasses
import functools
import os
import pathlib
import tempfile

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from regseg_jax.config import Config, parse_config
from regseg_jax.data.dataset import CLASS_TABLES, DataConfig
from regseg_jax.models.variants import get_variant
from regseg_jax.runs.counters import save_counters
from regseg_jax.runs.parts import create_dataset, create_run_model, create_run_optimizer
from regseg_jax.runs.workdir import claim_workdir
from regseg_jax.runtime.command import run_command
from regseg_jax.training.checkpoints import CheckpointManager
from regseg_jax.training.train_state import start_from
from regseg_jax.weights.load import load_weights_file
from regseg_jax.weights.names import count_classes, from_torch


def import_torch(
    path: str | os.PathLike,
    model_name: str,
    num_classes: int,
    workdir: str | os.PathLike,
    config: ConfigDict | None = None,
) -> None:
    """Writes a run folder whose checkpoint, of step 0, holds the weights of a file.

    Args:
      path: a PyTorch or safetensors file of the author's names, see `weights.load`.
      model_name: the variant that the weights are of, or an alias.
      num_classes: the classes that it was trained with.
      workdir: the run's folder; new or empty. Written atomically.
      config: the run's, except for its model; None: the defaults.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if the file does not hold weights of this model and these classes, if no data set
        has this many classes, or if workdir is in use.
    """
    _check_unused(workdir)
    run_config = _create_run_config(config, model_name, num_classes)
    model = create_run_model(run_config)
    file = load_weights_file(path)
    print(file.report)
    name = file.metadata.get("name", run_config.model)
    if name != run_config.model:
        raise ValueError(f"{path} is of {name}, not of {model_name}; pass --model={name}")
    state_dict = file.arrays
    if (count := count_classes(state_dict)) not in (None, num_classes):
        raise ValueError(
            f"{path} is a model of {count} classes, not {num_classes}; pass --num_classes={count}"
        )
    tx, with_ema = create_run_optimizer(run_config, model, num_steps=1), run_config.ema_decay > 0
    create_state = jax.jit(functools.partial(start_from, model, tx, with_ema=with_ema))
    state = create_state(from_torch(state_dict, model))

    workdir = pathlib.Path(workdir)
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=workdir.parent, prefix=f".{workdir.name}-") as temporary:
        folder = pathlib.Path(temporary) / workdir.name
        claim_workdir(run_config, folder)
        save_counters(folder, state_dict)
        checkpoints = CheckpointManager(folder)
        checkpoints.save(state)
        checkpoints.close()
        os.rename(folder, workdir)


def _check_unused(workdir: str | os.PathLike) -> None:
    workdir = pathlib.Path(workdir)
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise ValueError(f"workdir {workdir} is in use; choose one that is new or empty")


def _create_run_config(config: ConfigDict | None, model_name: str, num_classes: int) -> Config:
    """The config with this model; without one the defaults, for data of this many classes."""
    if config is None:
        sources = {name: table.num_classes for name, table in CLASS_TABLES.items() if table}
        source = next((name for name, count in sources.items() if count == num_classes), None)
        if source is None:
            known = ", ".join(f"{name} {count}" for name, count in sources.items())
            raise ValueError(
                f"no data set here has {num_classes} classes ({known}), so they have no names; "
                "pass the --config of a data set with as many"
            )
        run_config = Config(data=DataConfig(source))
    else:
        run_config = parse_config(config)
    run_config = dataclasses.replace(run_config, model=get_variant(model_name).name)
    table = create_dataset(run_config).class_table
    if table.num_classes != num_classes:
        raise ValueError(
            f"--num_classes is {num_classes} and the config's data set, {run_config.data.source}, "
            f"has {table.num_classes} classes; pass a --config of {num_classes} classes"
        )
    return run_config


def main(argv: list[str]) -> None:
    """Imports the file that the flags name."""
    if argv:
        raise ValueError(f"unexpected arguments {argv}; flags start with --")
    values = flags.FLAGS
    import_torch(values.input, values.model, values.num_classes, values.workdir, values.config)
    print(f"wrote {values.workdir}")


def run() -> None:
    """Defines the flags and runs the command."""
    flags.DEFINE_string("input", None, "The PyTorch or safetensors file.")
    flags.DEFINE_string("model", None, "BACKBONE_DECODER, an alias, or a variant file.")
    flags.DEFINE_integer("num_classes", None, "The classes that it was trained with.")
    flags.DEFINE_string("workdir", None, "The run's folder; new or empty.")
    config_flags.DEFINE_config_file("config", None, "The recipe; else the defaults.")
    flags.mark_flags_as_required(["input", "model", "num_classes", "workdir"])
    run_command(main, "regseg_jax.import_torch")


if __name__ == "__main__":
    run()
