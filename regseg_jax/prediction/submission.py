"""A whole split as label-id PNGs, as benchmark servers want them."""

import os
import pathlib
import zlib
from typing import Any

import jax
import numpy as np
from PIL import Image, PngImagePlugin
from tqdm import tqdm

from regseg_jax.data.classes import ClassTable
from regseg_jax.data.sources.source import Source
from regseg_jax.prediction.engine import Failures, Predictor, predict_all
from regseg_jax.runtime.files import replacing

# The PNG text that says which checkpoint a file is of.
_CHECKPOINT = "checkpoint"
# Splits that a server takes only whole: (class table, split) -> images.
WHOLE_SPLITS = {("cityscapes", "test"): 1525}


def check_whole(source: Source, class_table: ClassTable, split: str) -> None:
    """Raises ValueError if images of a split that a server takes only whole are missing."""
    expected = WHOLE_SPLITS.get((class_table.name, split), len(source))
    if len(source) != expected:
        raise ValueError(
            f"the {split} split of {class_table.name} has {expected} images, {len(source)} are "
            "here, and the server takes no part of it; complete it, see config.data.data_dir"
        )


def compute_fingerprint(variables: Any) -> str:
    """A checksum of a checkpoint's arrays."""
    checksum = 0
    for leaf in jax.tree.leaves(variables):
        checksum = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), checksum)
    return f"{checksum:08x}"


def write_label_ids(
    source: Source,
    predictor: Predictor,
    class_table: ClassTable,
    output: str | os.PathLike,
    fingerprint: str,
) -> list[pathlib.Path]:
    """Writes `NAME.png` for each example: its raw label ids, one channel of 8 bits.

    NAME is the image file's, such as `berlin_000000_000019_leftImg8bit`; the Cityscapes server
    looks for the city, sequence and frame that it starts with. Writing is atomic, and the files of
    an earlier start with the same checkpoint are kept.

    Args:
      source: the split.
      predictor: of its images.
      class_table: the label id of each training id.
      output: a folder; created where missing.
      fingerprint: of the checkpoint, see `compute_fingerprint`.

    Returns:
      The paths, one for each example.

    Raises:
      ValueError: if an image cannot be read, two have one name, or output holds the predictions of
        another checkpoint, after all others are written; if a label id does not fit 8 bits.
    """
    if max(class_table.label_ids) > 255:
        raise ValueError(
            f"the class table {class_table.name!r} has the label id {max(class_table.label_ids)}; "
            "label-id files hold numbers from 0 to 255"
        )
    output = pathlib.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    label_ids = np.array(class_table.label_ids, np.uint8)
    paths: dict[int, pathlib.Path] = {}
    owners: dict[pathlib.Path, int] = {}

    def load(index: int) -> np.ndarray | None:
        example = source[index]
        paths[index] = path = output / f"{example['name']}.png"
        if owners.setdefault(path, index) != index:
            raise ValueError(
                f"two images are called {example['name']} and would both write {path}; give them "
                "names of their own"
            )
        image = example["image"]
        return None if _is_done(path, image.shape[:2], fingerprint) else image

    def write(index: int, image: np.ndarray, prediction: np.ndarray) -> None:
        del image
        _save(label_ids[prediction], paths[index], fingerprint)

    failures = Failures()
    done = predict_all(range(len(source)), load, predictor, write, failures)
    for _ in tqdm(done, desc="predicting", total=len(source), unit="image", disable=None):
        pass
    failures.raise_any(len(source))
    return [paths[index] for index in range(len(source))]


def _is_done(path: pathlib.Path, size: tuple[int, int], fingerprint: str) -> bool:
    """Whether a whole prediction of this checkpoint is there; a damaged one is made again."""
    if not path.exists():
        return False
    try:
        with Image.open(path) as image:
            image.load()
            checkpoint = image.info.get(_CHECKPOINT)
    except (OSError, ValueError, SyntaxError):
        return False
    if checkpoint != fingerprint:
        raise ValueError(
            f"{path} exists and is not a prediction of this checkpoint with these options; choose "
            "another --output, or remove it"
        )
    return image.size == size[::-1]


def _save(label_ids: np.ndarray, path: pathlib.Path, fingerprint: str) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text(_CHECKPOINT, fingerprint)
    with replacing(path) as partial:
        Image.fromarray(label_ids).save(partial, format="PNG", pnginfo=info)
