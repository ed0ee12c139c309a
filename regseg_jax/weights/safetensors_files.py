"""safetensors files: a state dict by PyTorch's names, with metadata to use it."""

import json
import os
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

_DTYPES = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8},
}


def is_safetensors(path: str | os.PathLike) -> bool:
    """Whether a file starts as the format does: 8 bytes of length, then JSON.

    Raises:
      OSError: if the file cannot be read.
    """
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def serialize(
    arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any], dtype: str = "float32"
) -> bytes:
    """The content of a file.

    Args:
      arrays: floats and integers, by name.
      metadata: plain data; strings are kept as they are, the rest as JSON.
      dtype: that floats are cast to.

    Raises:
      ValueError: if a value is too large for the dtype.
    """
    with np.errstate(over="ignore"):
        cast = {
            name: np.asarray(array, dtype if array.dtype.kind == "f" else None, order="C")
            for name, array in arrays.items()
        }
    if broken := [name for name, array in cast.items() if not np.isfinite(array).all()]:
        raise ValueError(f"{', '.join(broken[:10])} are beyond {dtype}; use float32")
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    return safetensors.numpy.save(cast, texts)


def load(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads names to arrays of the file's dtypes, and the metadata as texts.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if it is not a safetensors file, or is damaged.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
        entries = safetensors.deserialize(content)
        arrays = {
            name: np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
            for name, entry in entries
        }
    except (safetensors.SafetensorError, KeyError) as error:
        raise ValueError(
            f"{path} ({os.path.getsize(path):,} bytes) is not a safetensors file of arrays, or "
            f"is damaged or cut off ({error}); copy or download it again"
        ) from error
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return arrays, header.get("__metadata__", {})
