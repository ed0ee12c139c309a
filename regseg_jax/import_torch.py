"""Makes a PyTorch file the first checkpoint of a run, to evaluate, predict, fine-tune or export.

python -m regseg_jax.import_torch --input=FILE.pth --model=exp48_decoder26 --num_classes=19 \
    --workdir=RUN [--config=configs/camvid.py]

The run's config is --config's, or the defaults with the data set of that many classes. Training
with the same config in the same workdir fine-tunes the weights.
"""

import functools
import os
import pathlib
import tempfile

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from regseg_jax.config import claim_workdir, create_default_config, validate_config
from regseg_jax.export.export import require_packages
from regseg_jax.export.torch_weights import count_classes, from_torch
from regseg_jax.models.variants import get_variant
from regseg_jax.runs import run
from regseg_jax.runtime.command import run_command
from regseg_jax.training.checkpoints import CheckpointManager
from regseg_jax.training.train_state import start_from


def import_torch(
    path: str | os.PathLike,
    model_name: str,
    num_classes: int,
    workdir: str | os.PathLike,
    config: ConfigDict | None = None,
) -> None:
    """Writes a run folder whose checkpoint, of step 0, holds the weights of a PyTorch file.

    Args:
      path: a state dict, bare or under the key "model", of the author's names.
      model_name: the variant that it is of, or an alias.
      num_classes: the classes that it was trained with.
      workdir: the run's folder; new or empty. Written whole or not at all.
      config: the run's, but for its model; None: the defaults.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if it is no file of weights of this model and these classes, if no data set has
        so many classes, or if workdir is in use.
    """
    require_packages("reading a PyTorch file", ("torch",))
    from regseg_jax.export.torch_format import load_arrays, save_counters

    _check_unused(workdir)
    config = _create_run_config(config, model_name, num_classes)
    validate_config(config, with_data=False)
    model = run.create_run_model(config)
    state_dict = load_arrays(path)
    if (count := count_classes(state_dict)) not in (None, num_classes):
        raise ValueError(
            f"{path} is a model of {count} classes, not {num_classes}; pass --num_classes={count}"
        )
    tx, _ = run.create_run_optimizer(config, model, num_steps=1)
    create_state = jax.jit(functools.partial(start_from, model, tx, with_ema=config.ema_decay > 0))
    state = create_state(from_torch(state_dict, model))

    workdir = pathlib.Path(workdir)
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=workdir.parent, prefix=f".{workdir.name}-") as temporary:
        folder = pathlib.Path(temporary) / workdir.name
        claim_workdir(config, folder)
        save_counters(folder, state_dict)
        checkpoints = CheckpointManager(folder)
        checkpoints.save(state)
        checkpoints.close()
        os.rename(folder, workdir)


def _check_unused(workdir: str | os.PathLike) -> None:
    workdir = pathlib.Path(workdir)
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise ValueError(f"workdir {workdir} is in use; choose one that is new or empty")


def _create_run_config(config: ConfigDict | None, model_name: str, num_classes: int) -> ConfigDict:
    """The config with this model; without one the defaults, for data of so many classes."""
    if config is None:
        sources = {source: table.num_classes for source, table in run.CLASS_TABLES.items()}
        source = next((name for name, count in sources.items() if count == num_classes), None)
        if source is None:
            known = ", ".join(f"{name} {count}" for name, count in sources.items())
            raise ValueError(
                f"no data set here has {num_classes} classes ({known}), so they have no names; "
                "pass the --config of a data set with as many"
            )
        config = create_default_config()
        config.data.source = source
    config.model = get_variant(model_name).name
    table = run.get_class_table(config)
    if table.num_classes != num_classes:
        raise ValueError(
            f"--num_classes is {num_classes} and the config's data set, {config.data.source}, has "
            f"{table.num_classes} classes; pass a --config of {num_classes} classes"
        )
    return config


def main(argv: list[str]) -> None:
    """Imports the file that the flags name."""
    if argv:
        raise ValueError(f"unexpected arguments {argv}; flags start with --")
    values = flags.FLAGS
    import_torch(values.input, values.model, values.num_classes, values.workdir, values.config)
    print(f"wrote {values.workdir}")


if __name__ == "__main__":
    flags.DEFINE_string("input", None, "The PyTorch file.")
    flags.DEFINE_string("model", None, "BACKBONE_DECODER, an alias, or a variant file.")
    flags.DEFINE_integer("num_classes", None, "The classes that it was trained with.")
    flags.DEFINE_string("workdir", None, "The run's folder; new or empty.")
    config_flags.DEFINE_config_file("config", None, "A file of configs/; else the defaults.")
    flags.mark_flags_as_required(["input", "model", "num_classes", "workdir"])
    run_command(main, "regseg_jax.import_torch")
