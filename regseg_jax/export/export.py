"""Trained weights -> one file to deploy, in any of the formats."""

import os
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from regseg_jax.export.state_dict import create_state_dict
from regseg_jax.models.searched_conv import SEARCH_PARAMETERS
from regseg_jax.runs.found import FOUND_FILE
from regseg_jax.runs.trained import Trained, load_run
from regseg_jax.runtime.files import check_new, replacing
from regseg_jax.runtime.packages import require_packages
from regseg_jax.weights import safetensors_files
from regseg_jax.weights.metadata import create_metadata

# The packages that each format needs in addition to the project's own (pyproject.toml).
FORMATS = {
    "safetensors": (),
    "torch": ("torch",),
    "onnx": ("torch", "onnx"),
    "stablehlo": ("flatbuffers",),
}
_OF_WEIGHTS = ("safetensors", "torch")  # the rest are computations
DTYPES = ("float32", "float16")


def export_run(
    workdir: str | os.PathLike | Trained,
    format_name: str,
    output: str | os.PathLike,
    size: tuple[int, int] | None = None,
    *,
    class_map: bool = False,
    dtype: str = "float32",
    ema: bool = False,
) -> None:
    """Writes the best checkpoint of a run, or a weights file, as one file.

    Args:
      workdir: of a run with a checkpoint; or what was already loaded.
      format_name: one of `FORMATS`.
      output: the file; written atomically.
      size: (height, width) that the file is fixed to; None: any. Not for files of weights.
      class_map: whether the output is the most likely class, not logits. Not for files of weights.
      dtype: one of `DTYPES`, of the weights; safetensors only.
      ema: whether to write the averaged weights.

    Raises:
      ValueError: if output exists, a package is missing, the run cannot be read, weights are not
        finite or of a search (stablehlo takes one), or the options do not fit.
    """
    if format_name not in FORMATS:
        raise ValueError(f"--format is {format_name!r}; use one of {', '.join(FORMATS)}")
    if format_name in _OF_WEIGHTS and (size or class_map):
        raise ValueError(
            f"a file of --format={format_name} holds weights alone; leave out --size and "
            "--class_map"
        )
    if dtype not in DTYPES or (dtype != "float32" and format_name != "safetensors"):
        raise ValueError(
            f"--dtype is {dtype!r}; use one of {', '.join(DTYPES)}, the latter with "
            "--format=safetensors"
        )
    check_new(output)
    require_packages(f"--format={format_name}", FORMATS[format_name])
    trained = workdir if isinstance(workdir, Trained) else Trained.from_run(load_run(workdir))
    trained = trained.with_ema() if ema else trained
    _check_weights(trained, format_name)
    write_new_file(output, _serialize(trained, format_name, size, class_map, dtype))


def _check_weights(trained: Trained, format_name: str) -> None:
    arrays = flatten_dict(trained.variables, sep="/")
    searched = any(name.rpartition("/")[2] in SEARCH_PARAMETERS for name in arrays)
    if format_name != "stablehlo" and searched:
        raise ValueError(
            f"{trained.path} is a search of dilation rates, which are no integers yet; train what "
            f"it found first: --config.model={trained.path}/{FOUND_FILE} and "
            "--config.search.enabled=False"
        )
    if broken := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise ValueError(
            f"{trained.path}: the checkpoint of step {trained.step} has NaN or infinity in "
            f"{', '.join(broken)}; export another run"
        )


def _serialize(
    trained: Trained,
    format_name: str,
    size: tuple[int, int] | None,
    class_map: bool,
    dtype: str,
) -> bytes:
    """The file's content. Imports only what the format needs."""
    metadata = create_trained_metadata(trained)
    if format_name == "safetensors":
        return safetensors_files.serialize(create_state_dict(trained), metadata, dtype)
    if format_name == "stablehlo":
        from regseg_jax.export import stablehlo_format

        return stablehlo_format.serialize(
            trained.model, trained.variables, metadata, size, class_map=class_map
        )
    from regseg_jax.export import torch_format

    model = torch_format.create_trained_torch_model(trained)
    if format_name == "torch":
        return torch_format.serialize(model, metadata)
    from regseg_jax.export import onnx_format

    return onnx_format.serialize(model, metadata, size, class_map=class_map)


def create_trained_metadata(trained: Trained) -> dict[str, Any]:
    """What a user of the file needs to know, see `weights.metadata`."""
    return create_metadata(
        trained.model.variant.name,
        trained.class_table,
        trained.eval_config.image_size,
        trained.step,
    )


def write_new_file(path: str | os.PathLike, content: bytes) -> None:
    """Writes a new file atomically.

    Raises:
      ValueError: if path exists.
      OSError: if it cannot be written.
    """
    with replacing(path) as partial:
        partial.write_bytes(content)
        check_new(path)
