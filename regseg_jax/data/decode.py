"""Image and label files as arrays, and raw label values as training ids."""

import functools
import os
import pathlib
from typing import Literal

import imagecodecs
import numpy as np
from PIL import Image

from regseg_jax.data.classes import IGNORE_LABEL, ClassTable

# One channel of raw label ids, one of training ids, or RGB colours.
LabelFormat = Literal["ids", "train_ids", "colors"]

# In the lookup tables: a value that the class table does not know.
_UNKNOWN = 254

# Of PNG files: bit depth and colour type in the header, and the shape that follows from them.
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_HEADERS = {"L": bytes((8, 0)), "RGB": bytes((8, 2))}
_PNG_CHANNELS = {"L": (), "RGB": (3,)}


def load_image(path: str | os.PathLike) -> np.ndarray:
    """Reads an image file as uint8[H, W, 3].

    Raises:
      ValueError: if it is no image, is truncated or cannot be opened.
    """
    image = _read_plain_png(path, "RGB")
    return np.asarray(_open(path).convert("RGB")) if image is None else image


def _read_plain_png(path: str | os.PathLike, mode: Literal["L", "RGB"]) -> np.ndarray | None:
    """Decodes a PNG of 8 bits a channel in half of Pillow's time.

    Returns:
      What Pillow gives; None for a file of another kind and for one that cannot be read, which
      Pillow then explains.
    """
    try:
        data = pathlib.Path(path).read_bytes()
        if data[:8] != _PNG_SIGNATURE or data[24:26] != _PNG_HEADERS[mode]:
            return None
        array = imagecodecs.png_decode(data)
    except (OSError, imagecodecs.PngError):
        return None
    return array if array.shape[2:] == _PNG_CHANNELS[mode] else None  # transparency adds one


def read_image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Height and width of an image file, from its header alone.

    Raises:
      ValueError: if it is no image or cannot be opened.
    """
    width, height = _open(path, load=False).size
    return height, width


def _open(path: str | os.PathLike, load: bool = True) -> Image.Image:
    try:
        with Image.open(path) as image:  # closes the file also where it cannot be read
            if load:
                image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"cannot read {path}: {error}; restore the file or take it out of the data set"
        ) from None
    return image


def load_label(path: str, table: ClassTable, label_format: LabelFormat) -> np.ndarray:
    """Reads a label file as uint8[H, W] of training ids or `IGNORE_LABEL`.

    Raises:
      ValueError: if it cannot be read or holds a value that the class table does not know.
    """
    return to_train_ids(_load_raw_label(path, label_format), table, label_format, path)


def _load_raw_label(path: str, label_format: LabelFormat) -> np.ndarray:
    """Returns int[H, W]: the raw id, or the colour as one number 0xRRGGBB."""
    if label_format == "colors":
        red, green, blue = np.moveaxis(load_image(path).astype(np.int32), -1, 0)
        return (red << 16) | (green << 8) | blue
    if (label := _read_plain_png(path, "L")) is not None:
        return label
    image = _open(path)
    if image.mode not in ("L", "P", "I", "I;16"):
        raise ValueError(
            f"{path} has mode {image.mode}, not one channel of label ids; "
            "save label ids as 8-bit greyscale PNG"
        )
    return np.asarray(image)


def to_train_ids(
    raw: np.ndarray, table: ClassTable, label_format: LabelFormat, path: str
) -> np.ndarray:
    """Translates raw label values.

    Args:
      raw: int[H, W], raw ids, training ids, or colours as numbers 0xRRGGBB.
      table: the classes.
      label_format: which of the three.
      path: of the file, for the message.

    Returns:
      uint8[H, W], training ids or `IGNORE_LABEL`.

    Raises:
      ValueError: names the values that the table does not know.
    """
    lookup = _create_lookup(table, label_format)
    index = raw
    if raw.dtype.itemsize > 1:  # 8 bits are always inside the table
        index = np.where((raw < 0) | (raw >= len(lookup)), len(lookup) - 1, raw)
    label = np.take(lookup, index)
    unknown = label == _UNKNOWN
    if unknown.any():
        values = np.unique(raw[unknown]).tolist()[:8]
        is_color = label_format == "colors"
        raise ValueError(
            f"{path} holds label {'colours' if is_color else 'values'} "
            f"{[_unpack(value) for value in values] if is_color else values} "
            f"that the class table {table.name!r} does not know; mend the file or add "
            "them to the table's ignored ones"
        )
    return label


@functools.lru_cache(maxsize=4)
def _create_lookup(table: ClassTable, label_format: LabelFormat) -> np.ndarray:
    """uint8[n], the training id of each raw value; the last one is unknown always."""
    if label_format == "colors":
        values, ignored = [*map(_pack, table.colors)], [*map(_pack, table.ignored_colors)]
    elif label_format == "ids":
        values, ignored = table.label_ids, table.ignored_label_ids
    else:
        values, ignored = range(table.num_classes), (IGNORE_LABEL,)
    lookup = np.full(max(256, *values, *ignored) + 2, _UNKNOWN, np.uint8)
    lookup[list(ignored)] = IGNORE_LABEL
    lookup[list(values)] = np.arange(table.num_classes)
    return lookup


def _pack(color: tuple[int, int, int]) -> int:
    red, green, blue = color
    return (red << 16) | (green << 8) | blue


def _unpack(value: int) -> tuple[int, int, int]:
    return value >> 16, (value >> 8) & 255, value & 255
