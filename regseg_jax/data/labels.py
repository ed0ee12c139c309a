"""Label files as arrays of raw values, as stored, and raw values as training ids."""

import functools
from typing import Literal

import numpy as np
from PIL import Image

from regseg_jax.data.classes import IGNORE_LABEL, UNKNOWN_LABEL, ClassTable
from regseg_jax.data.decode import (
    ImageFile,
    OpenedImage,
    open_file,
    open_image,
    read_plain_png,
)

# One channel of raw label ids, one of training ids, or RGB colours.
LabelFormat = Literal["ids", "train_ids", "colors"]

_LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")
_LABEL_FORMATS = ("PNG", "TIFF", "BMP", "DIB", "GIF", "PPM", "TGA")

# Pillow spreads grey of few bits over 0 to 255: by what it multiplies, for each way of storing.
# White is 1 in a file of one bit.
_SPREAD = {"L": 1, "L;R": 1, "L;2": 85, "L;2R": 85, "L;4": 17, "L;4R": 17}
_COLOR_MODES = ("1", "L", "P", "RGB", "RGBA")
_MAX_LISTED = 8


def load_raw_label(path: ImageFile, label_format: LabelFormat) -> np.ndarray:
    """Reads a label file as stored: no value is scaled, and no EXIF orientation applied.

    Returns:
      int[H, W]: the value, of palette files the index; or the colour as one number 0xRRGGBB.

    Raises:
      ValueError: if it cannot be read, or is of a kind that cannot hold labels.
    """
    if label_format != "colors" and (label := read_plain_png(path, "L")) is not None:
        return label
    opened = open_image(path)
    image = opened.as_stored()
    if opened.format not in _LABEL_FORMATS:
        lossy = opened.format in _LOSSY_FORMATS
        reason = "a lossy format, which changes label values" if lossy else "not read as labels"
        raise ValueError(
            f"the label file {path} is {opened.format}, {reason} (it holds {_list_values(image)}); "
            "make the labels again as PNG from the original ones"
        )
    if label_format == "colors":
        if image.mode not in _COLOR_MODES:
            raise ValueError(
                f"the label file {path} has mode {image.mode}, not colours of 8 bits a channel; "
                "save labels of colours as RGB PNG"
            )
        red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(np.int32), -1, 0)
        return (red << 16) | (green << 8) | blue
    return _read_ids(opened, image, path)


def _read_ids(opened: OpenedImage, image: Image.Image, path: ImageFile) -> np.ndarray:
    values = np.asarray(image)
    if image.mode == "1":
        return values.astype(np.uint8)
    if opened.format == "PPM" and image.mode in ("L", "I"):
        return _unscale_ppm(values, path)
    if image.mode == "L" and opened.raw_mode in _SPREAD:
        return values // np.uint8(_SPREAD[opened.raw_mode])
    if image.mode in ("P", "I") or image.mode.startswith("I;16"):
        return values
    fix = "save label ids as 8-bit or 16-bit greyscale PNG"
    if image.mode == "RGB":
        fix += ', or set config.folder.label_format to "colors" and give each class its colour'
    raise ValueError(
        f"the label file {path} is not one channel of label ids: it has mode {image.mode}, stored "
        f"as {opened.raw_mode}, and holds {_list_values(image)}; {fix}"
    )


def _unscale_ppm(values: np.ndarray, path: ImageFile) -> np.ndarray:
    """Undoes that Pillow scales the values of a PGM file by its largest legal one."""
    with open_file(path) as file:
        tokens = [
            token for line in file.read(1024).splitlines() for token in line.split(b"#")[0].split()
        ]
    largest, spread = int(tokens[3]), 65535 if values.dtype.itemsize > 1 else 255
    return np.rint(values * (largest / spread)).astype(np.int32)


def _list_values(image: Image.Image) -> str:
    """`12 values such as 0, 1, 2`, of a grey or colour picture."""
    array = np.asarray(image)
    if array.ndim == 2:
        return _join_values(np.unique(array).tolist(), "value")
    return _join_values(list(map(tuple, np.unique(_flat(array), axis=0).tolist())), "colour")


def _flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, array.shape[-1])


def _join_values(values: list, noun: str) -> str:
    listed = ", ".join(map(str, values[:_MAX_LISTED]))
    if len(values) > _MAX_LISTED:
        return f"{len(values)} {noun}s such as {listed}"
    return f"the {noun}{'s' if len(values) > 1 else ''} {listed}"


def to_train_ids(
    raw: np.ndarray, table: ClassTable, label_format: LabelFormat, path: ImageFile
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
    unknown = label == UNKNOWN_LABEL
    if unknown.any():
        values = format_raw_values(np.unique(raw[unknown]), label_format)
        noun = "colours" if label_format == "colors" else "values"
        raise ValueError(
            f"{path} holds label {noun} {values[:_MAX_LISTED]} "
            f"{f'and {len(values) - _MAX_LISTED} more ' if len(values) > _MAX_LISTED else ''}"
            f"that the class table {table.name!r} does not know; fix the file, give them a class, "
            "or list them among the table's ignored ones"
        )
    return label


def format_raw_values(values: np.ndarray, label_format: LabelFormat) -> list:
    """Raw values as people write them: numbers, or colours (red, green, blue)."""
    if label_format == "colors":
        return [_unpack(value) for value in values.tolist()]
    return values.tolist()


def list_known_values(table: ClassTable, label_format: LabelFormat) -> tuple[tuple, tuple]:
    """The raw values of the classes, in the order of training ids, and the ignored ones."""
    return {
        "ids": (table.label_ids, table.ignored_label_ids),
        "train_ids": (tuple(range(table.num_classes)), (IGNORE_LABEL,)),
        "colors": (table.colors, table.ignored_colors),
    }[label_format]


@functools.lru_cache(maxsize=4)
def _create_lookup(table: ClassTable, label_format: LabelFormat) -> np.ndarray:
    """uint8[n], the training id of each raw value; the last one is unknown always."""
    values, ignored = list_known_values(table, label_format)
    if label_format == "colors":
        values, ignored = [*map(_pack, values)], [*map(_pack, ignored)]
    lookup = np.full(max(256, *values, *ignored) + 2, UNKNOWN_LABEL, np.uint8)
    lookup[list(ignored)] = IGNORE_LABEL
    lookup[list(values)] = np.arange(table.num_classes)
    return lookup


def _pack(color: tuple[int, int, int]) -> int:
    red, green, blue = color
    return (red << 16) | (green << 8) | blue


def _unpack(value: int) -> tuple[int, int, int]:
    return value >> 16, (value >> 8) & 255, value & 255
