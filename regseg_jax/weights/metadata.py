"""Metadata of a weights file: what is needed to use the weights without the run."""

import contextlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from regseg_jax.data.augment import MEAN, STD
from regseg_jax.data.classes import CAMVID, CITYSCAPES, ClassTable

_TABLES = (CAMVID, CITYSCAPES)


def create_metadata(
    name: str, class_table: ClassTable, image_size: Sequence[int], step: int
) -> dict[str, Any]:
    """Describes weights, for a file of any format.

    Args:
      name: of the variant.
      class_table: in the order of the logits.
      image_size: height and width that images are resized to first; () for not at all.
      step: of the checkpoint.

    Returns:
      name, num_classes, class_names, class_table (its name), colors, label_ids, ignored_label_ids,
      ignored_colors, reduced_without: as in `ClassTable`; mean and std: the input is
      (RGB / 255 - mean) / std; image_size; step; version: of this project, if it is installed.
    """
    metadata = {
        "name": name,
        "num_classes": class_table.num_classes,
        "class_names": list(class_table.class_names),
        "class_table": class_table.name,
        "colors": [list(color) for color in class_table.colors],
        "label_ids": list(class_table.label_ids),
        "ignored_label_ids": list(class_table.ignored_label_ids),
        "ignored_colors": [list(color) for color in class_table.ignored_colors],
        "reduced_without": list(class_table.reduced_without),
        "mean": list(MEAN),
        "std": list(STD),
        "image_size": list(image_size),
        "step": step,
    }
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # run from a checkout
        metadata["version"] = importlib.metadata.version("regseg_jax")
    return metadata


def parse_texts(texts: Mapping[str, str]) -> dict[str, Any]:
    """The metadata of a safetensors file; {} for a file of another program."""
    if not {"name", "num_classes"} <= texts.keys():
        return {}
    strings = ("name", "class_table", "version")
    return {k: v if k in strings else json.loads(v) for k, v in texts.items()}


def check_preprocessing(metadata: Mapping[str, Any]) -> None:
    """Raises ValueError if the weights need another normalisation than this project's."""
    for key, ours in (("mean", MEAN), ("std", STD)):
        theirs = metadata.get(key, ours)
        if len(theirs) != 3 or not np.allclose(theirs, ours, rtol=0, atol=1e-3):
            raise ValueError(
                f"the weights were trained on images normalised by {key} {list(theirs)}, and "
                f"here it is {list(ours)}; they would predict nonsense"
            )


def find_class_table(metadata: Mapping[str, Any], num_classes: int) -> tuple[ClassTable, str]:
    """The classes of weights: the metadata's, those of a data set with as many, or numbered ones.

    Returns:
      The table, and where it came from, in words; "" where the metadata say it.
    """
    if "colors" in metadata:
        return _read_class_table(metadata), ""
    names = tuple(metadata.get("class_names", ()))
    for table in _TABLES:
        if table.num_classes == num_classes and names in ((), table.class_names):
            reason = "" if names else f"its {num_classes} classes are taken for {table.name}'s"
            return table, reason
    names = names or tuple(f"class {i}" for i in range(num_classes))
    colors = tuple(_color(i) for i in range(num_classes))
    table = ClassTable("weights", names, colors, tuple(range(num_classes)))
    return table, f"colours and label values of its {num_classes} classes are made up"


def _read_class_table(metadata: Mapping[str, Any]) -> ClassTable:
    return ClassTable(
        name=metadata["class_table"],
        class_names=tuple(metadata["class_names"]),
        colors=tuple(map(tuple, metadata["colors"])),
        label_ids=tuple(metadata["label_ids"]),
        ignored_label_ids=tuple(metadata["ignored_label_ids"]),
        ignored_colors=tuple(map(tuple, metadata["ignored_colors"])),
        reduced_without=tuple(metadata["reduced_without"]),
    )


def _color(index: int) -> tuple[int, int, int]:
    """Colours that differ: the bits of the index go to red, green and blue in turn (PASCAL VOC)."""
    index += 1  # black is for what is ignored
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return tuple(channels)
