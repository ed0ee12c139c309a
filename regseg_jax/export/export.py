"""A run's best checkpoint -> one file to deploy, in any of the formats."""

import os
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from regseg_jax.export.state_dict import create_state_dict
from regseg_jax.runs.counters import load_counters
from regseg_jax.runs.found import FOUND_FILE
from regseg_jax.runs.trained import TrainedRun, load_run
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
    workdir: str | os.PathLike,
    format_name: str,
    output: str | os.PathLike,
    size: tuple[int, int] | None = None,
    *,
    class_map: bool = False,
    dtype: str = "float32",
) -> None:
    """Writes the best checkpoint of a run as one file.

    Args:
      workdir: of a run with a checkpoint.
      format_name: one of `FORMATS`.
      output: the file; written atomically.
      size: (height, width) that the file is fixed to; None: any. Not for files of weights.
      class_map: whether the output is the most likely class, not logits. Not for files of weights.
      dtype: one of `DTYPES`, of the weights; safetensors only.

    Raises:
      ValueError: if output exists, a package is missing, the run cannot be read, has weights
        that are not finite or is a search (stablehlo takes one), or the options do not fit.
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
    trained = load_run(workdir)
    if trained.config.search.enabled and format_name != "stablehlo":
        raise ValueError(
            f"{workdir} is a search of dilation rates, which are no integers yet; train what it "
            f"found first: --config.model={workdir}/{FOUND_FILE} and --config.search.enabled=False"
        )
    _check_finite(trained)
    write_new_file(output, _serialize(trained, workdir, format_name, size, class_map, dtype))


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
    dtype: str,
) -> bytes:
    """The file's content. Imports only what the format needs."""
    metadata = create_run_metadata(trained)
    counters = load_counters(workdir)
    if format_name == "safetensors":
        return safetensors_files.serialize(create_state_dict(trained, counters), metadata, dtype)
    if format_name == "stablehlo":
        from regseg_jax.export import stablehlo_format

        return stablehlo_format.serialize(
            trained.model, trained.variables, metadata, size, class_map=class_map
        )
    from regseg_jax.export import torch_format

    model = torch_format.create_trained_torch_model(trained, counters)
    if format_name == "torch":
        return torch_format.serialize(model, metadata)
    from regseg_jax.export import onnx_format

    return onnx_format.serialize(model, metadata, size, class_map=class_map)


def create_run_metadata(trained: TrainedRun) -> dict[str, Any]:
    """What a user of the file needs to know, see `weights.metadata`."""
    return create_metadata(
        trained.model.variant.name,
        trained.class_table,
        trained.config.eval.image_size,
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
