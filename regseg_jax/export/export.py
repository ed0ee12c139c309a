"""A run's best checkpoint -> one file to deploy, in any of the formats."""

import os
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from regseg_jax.data.augment import MEAN, STD
from regseg_jax.runs.trained import TrainedRun, load_run
from regseg_jax.runtime.files import check_new, replacing
from regseg_jax.runtime.packages import require_packages

# The packages that each format needs beside those of requirements.txt.
FORMATS = {"torch": ("torch",), "onnx": ("torch", "onnx"), "stablehlo": ("flatbuffers",)}


def export_run(
    workdir: str | os.PathLike,
    format_name: str,
    output: str | os.PathLike,
    size: tuple[int, int] | None = None,
    *,
    class_map: bool = False,
) -> None:
    """Writes the best checkpoint of a run as one file.

    Args:
      workdir: of a run with a checkpoint.
      format_name: one of `FORMATS`.
      output: the file; written whole or not at all.
      size: (height, width) that the file is fixed to; None: any. Not for torch.
      class_map: whether the output is the most likely class, not logits. Not for torch.

    Raises:
      ValueError: if output exists, a package is missing, the run cannot be read or has weights
        that are not finite, or the options do not fit the format.
    """
    if format_name not in FORMATS:
        raise ValueError(f"--format is {format_name!r}; use one of {', '.join(FORMATS)}")
    if format_name == "torch" and (size or class_map):
        raise ValueError(
            "a file of --format=torch holds weights alone; leave out --size and --class_map"
        )
    check_new(output)
    require_packages(f"--format={format_name}", FORMATS[format_name])
    trained = load_run(workdir)
    _check_finite(trained)
    write_new_file(output, _serialize(trained, workdir, format_name, size, class_map))


def _check_finite(trained: TrainedRun) -> None:
    arrays = flatten_dict(trained.variables, sep="/")
    if broken := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise ValueError(
            f"the checkpoint of step {trained.step} has NaN or infinity in {', '.join(broken)}; "
            "export another run"
        )


def _serialize(
    trained: TrainedRun,
    workdir: str | os.PathLike,
    format_name: str,
    size: tuple[int, int] | None,
    class_map: bool,
) -> bytes:
    """The file's content. Imports what the format needs and no more."""
    metadata = create_metadata(trained)
    if format_name == "stablehlo":
        from regseg_jax.export import stablehlo_format

        return stablehlo_format.serialize(
            trained.model, trained.variables, metadata, size, class_map=class_map
        )
    from regseg_jax.export import torch_format

    model = torch_format.create_trained_torch_model(trained, torch_format.load_counters(workdir))
    if format_name == "torch":
        return torch_format.serialize(model, metadata)
    from regseg_jax.export import onnx_format

    return onnx_format.serialize(model, metadata, size, class_map=class_map)


def create_metadata(trained: TrainedRun) -> dict[str, Any]:
    """What a user of the file needs to know, as plain data.

    Returns:
      name: of the model; num_classes; class_names, in the order of the logits; mean and std: the
      input is (RGB / 255 - mean) / std; image_size: what images are resized to first, [] for
      not at all; step: of the checkpoint.
    """
    return {
        "name": trained.model.variant.name,
        "num_classes": trained.model.num_classes,
        "class_names": list(trained.class_table.class_names),
        "mean": list(MEAN),
        "std": list(STD),
        "image_size": list(trained.config.eval.image_size),
        "step": trained.step,
    }


def write_new_file(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file that is whole or is not there.

    Raises:
      ValueError: if path exists.
      OSError: if it cannot be written.
    """
    with replacing(path) as partial:
        partial.write_bytes(content)
        check_new(path)
