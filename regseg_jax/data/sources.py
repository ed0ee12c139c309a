"""Data sets on disk as random-access sources of decoded examples.

A source is a picklable object with `__len__` and `__getitem__`; an example is a dict of `image`
uint8[H, W, 3], `label` uint8[H, W] of training ids or `IGNORE_LABEL`, and `name`.
"""

import concurrent.futures
import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from regseg_jax.data.classes import IGNORE_LABEL, ClassTable

Example = dict[str, Any]

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".ppm", ".bmp")


class Source(Protocol):
    """Random access to examples, each a pure function of its index."""

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def __getitem__(self, index: int) -> Example:
        """The example, decoded."""
        ...


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Image files and their label files.

    Attributes:
      pairs: paths of image and label.
      class_table: how raw label values become training ids.
      label_format: `ids` for one channel of raw label ids, `colors` for RGB.
    """

    pairs: tuple[tuple[str, str], ...]
    class_table: ClassTable
    label_format: Literal["ids", "colors"]

    def __len__(self) -> int:
        """The number of images."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        """Decodes a pair.

        Raises:
          ValueError: names the file that cannot be read, whose size differs from its image's, or
            that has a value outside the class table.
        """
        image_path, label_path = self.pairs[index]
        image = load_image(image_path)
        raw = _load_raw_label(label_path, self.label_format)
        if image.shape[:2] != raw.shape[:2]:
            raise ValueError(
                f"{label_path} is {raw.shape[0]} x {raw.shape[1]}, its image {image_path} "
                f"{image.shape[0]} x {image.shape[1]}; make the two of one size"
            )
        label = _to_train_ids(raw, self.class_table, self.label_format, label_path)
        return {"image": image, "label": label, "name": pathlib.Path(image_path).stem}


def load_image(path: str | os.PathLike) -> np.ndarray:
    """Reads an image file as uint8[H, W, 3].

    Raises:
      ValueError: if it is no image, is truncated or cannot be opened.
    """
    return np.asarray(_open(path).convert("RGB"))


def _open(path: str | os.PathLike) -> Image.Image:
    try:
        with Image.open(path) as image:  # closes the file also where it cannot be read
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"cannot read {path}: {error}; restore the file or take it out of the data set"
        ) from None
    return image


def _load_raw_label(path: str, label_format: str) -> np.ndarray:
    """Returns int[H, W]: the raw id, or the colour as one number 0xRRGGBB."""
    image = _open(path)
    if label_format == "colors":
        red, green, blue = np.moveaxis(np.asarray(image.convert("RGB"), np.int32), -1, 0)
        return (red << 16) | (green << 8) | blue
    if image.mode not in ("L", "P", "I", "I;16"):
        raise ValueError(
            f"{path} has mode {image.mode}, not one channel of label ids; "
            "save label ids as 8-bit greyscale PNG"
        )
    return np.asarray(image)


def _to_train_ids(raw: np.ndarray, table: ClassTable, label_format: str, path: str) -> np.ndarray:
    if label_format == "colors":
        values, ignored = map(_pack, table.colors), map(_pack, table.ignored_colors)
    else:
        values, ignored = table.label_ids, table.ignored_label_ids
    train_ids = dict.fromkeys(ignored, IGNORE_LABEL) | {v: i for i, v in enumerate(values)}
    present, inverse = np.unique(raw, return_inverse=True)
    unknown = [value for value in present.tolist() if value not in train_ids]
    if unknown:
        shown = [_unpack(v) for v in unknown] if label_format == "colors" else unknown
        raise ValueError(
            f"{path} holds label {'colours' if label_format == 'colors' else 'values'} "
            f"{shown[:8]} that the class table {table.name!r} does not know; mend the file or add "
            "them to the table's ignored ones"
        )
    lookup = np.array([train_ids[value] for value in present.tolist()], np.uint8)
    return lookup[inverse].reshape(raw.shape)


def _pack(color: tuple[int, int, int]) -> int:
    red, green, blue = color
    return (red << 16) | (green << 8) | blue


def _unpack(value: int) -> tuple[int, int, int]:
    return value >> 16, (value >> 8) & 255, value & 255


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How a data set's folders are named: `{split}` + suffix holds the labels."""

    label_folder: str
    label_stem: str
    label_format: Literal["ids", "colors"]


# CamVid's two editions, told apart by the folder beside the images.
_CAMVID_LAYOUTS = (
    _Layout("{split}annot", "{stem}", "ids"),  # SegNet's, 360 x 480
    _Layout("{split}_labels", "{stem}_L", "colors"),  # the original, 720 x 960
)


def load_camvid(data_dir: str | os.PathLike, split: str, class_table: ClassTable) -> FolderSource:
    """Finds the image and label files of a split of CamVid, in either layout.

    `train/NAME.png` with `trainannot/NAME.png` (SegNet's edition, label ids) or with
    `train_labels/NAME_L.png` (the original, colours). `trainval` is both splits.

    Raises:
      ValueError: names the missing folder, or the images without a label and labels without an
        image.
    """
    if split == "trainval":
        halves = [load_camvid(data_dir, half, class_table) for half in ("train", "val")]
        return dataclasses.replace(halves[0], pairs=halves[0].pairs + halves[1].pairs)
    if split not in ("train", "val", "test"):
        raise ValueError(f"split {split!r} is none of train, val, trainval, test")
    root = pathlib.Path(data_dir)
    for layout in _CAMVID_LAYOUTS:
        label_dir = root / layout.label_folder.format(split=split)
        if label_dir.is_dir():
            pairs = _pair_files(root / split, label_dir, layout.label_stem)
            return FolderSource(pairs, class_table, layout.label_format)
    expected = " or ".join(
        f"{split}/ beside {layout.label_folder.format(split=split)}/" for layout in _CAMVID_LAYOUTS
    )
    raise ValueError(
        f"{root} holds no CamVid {split} split: expected {expected}. "
        "Set --config.data.data_dir to the folder that holds them"
    )


def list_images(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The image files of a folder by stem, sorted."""
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in _IMAGE_SUFFIXES)
    return {path.stem: path for path in files}


def _pair_files(
    image_dir: pathlib.Path, label_dir: pathlib.Path, label_stem: str
) -> tuple[tuple[str, str], ...]:
    if not image_dir.is_dir():
        raise ValueError(f"there is {label_dir} but no folder of images {image_dir}")
    images, labels = list_images(image_dir), list_images(label_dir)
    stems = {stem: label_stem.format(stem=stem) for stem in images}
    without_label = [str(images[stem]) for stem in images if stems[stem] not in labels]
    without_image = [str(labels[name]) for name in labels.keys() - set(stems.values())]
    if without_label or without_image:
        raise ValueError(
            f"{len(without_label)} images in {image_dir} have no label in {label_dir} "
            f"({', '.join(without_label[:3])}...), {len(without_image)} labels have no image "
            f"({', '.join(sorted(without_image)[:3])}...); complete the pairs or remove them"
        )
    if not images:
        raise ValueError(f"{image_dir} holds no image")
    return tuple((str(images[stem]), str(labels[stems[stem]])) for stem in images)


def check_source(source: Source) -> Iterator[tuple[int, int]]:
    """Decodes every example in threads, so that bad files are found before training starts.

    Yields:
      (examples checked, examples in all), for a progress bar.

    Raises:
      ValueError: at the first bad example, as `FolderSource.__getitem__`; or if sizes differ.
    """
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first_shape = None
        examples = pool.map(lambda i: _shape_and_name(source, i), range(len(source)))
        for i, (shape, name) in enumerate(examples):
            first_shape = first_shape or shape
            if shape != first_shape:
                pool.shutdown(cancel_futures=True)
                raise ValueError(
                    f"image {name} is {shape[0]} x {shape[1]}, the first of its split "
                    f"{first_shape[0]} x {first_shape[1]}; resize the images to one size"
                )
            yield i + 1, len(source)


def _shape_and_name(source: Source, index: int) -> tuple[tuple[int, int], str]:
    example = source[index]
    return example["label"].shape, example["name"]
