"""Cityscapes as it is downloaded: `leftImg8bit_trainvaltest.zip` and `gtFine_trainvaltest.zip`."""

import os
import pathlib

from regseg_jax.data.classes import ClassTable
from regseg_jax.data.sources.pairing import check_pairs
from regseg_jax.data.sources.source import FolderSource

SPLITS = ("train", "val", "trainval", "test")
_IMAGE_SUFFIX = "_leftImg8bit.png"
_LABEL_SUFFIXES = {"ids": "_gtFine_labelIds.png", "train_ids": "_gtFine_labelTrainIds.png"}


def load_cityscapes(
    data_dir: str | os.PathLike, split: str, class_table: ClassTable
) -> FolderSource:
    """Finds the image and label files of a split, sorted by name.

    `leftImg8bit/SPLIT/CITY/X_leftImg8bit.png` with `gtFine/SPLIT/CITY/X_gtFine_labelIds.png` (raw
    ids) or, where a split has none of these, `X_gtFine_labelTrainIds.png`. `trainval` is train,
    then val. The labels of `test` are not public: every pixel is ignored, whatever files there are.

    Raises:
      ValueError: names the wrong split, the missing folder, or the images without a label and
        labels without an image.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    if split == "trainval":
        train, val = (load_cityscapes(data_dir, part, class_table) for part in ("train", "val"))
        if train.label_format != val.label_format:
            raise ValueError(
                f"{data_dir}/gtFine has {train.label_format} labels in train and "
                f"{val.label_format} labels in val; complete *{_LABEL_SUFFIXES['ids']} in both"
            )
        return FolderSource(train.pairs + val.pairs, class_table, train.label_format)
    image_dir = pathlib.Path(data_dir) / "leftImg8bit" / split
    images = _find(image_dir, _IMAGE_SUFFIX)
    if not images:
        raise ValueError(
            f"{image_dir} holds no CITY/*{_IMAGE_SUFFIX}; set --config.data.data_dir to the folder "
            "that holds leftImg8bit/ and gtFine/ as they are downloaded"
        )
    if split == "test":
        return FolderSource(
            tuple((str(path), None) for path in images.values()), class_table, "ids"
        )
    label_dir = pathlib.Path(data_dir) / "gtFine" / split
    by_format = {key: _find(label_dir, suffix) for key, suffix in _LABEL_SUFFIXES.items()}
    label_format = "ids" if by_format["ids"] else "train_ids"
    labels = by_format[label_format]
    check_pairs(images, labels, image_dir, label_dir, f"unpack both archives again into {data_dir}")
    pairs = tuple((str(images[key]), str(labels[key])) for key in images)
    return FolderSource(pairs, class_table, label_format)


def _find(folder: pathlib.Path, suffix: str) -> dict[str, pathlib.Path]:
    """The files of all cities with this suffix, by `CITY/X`, sorted."""
    paths = sorted(p for p in folder.glob(f"*/*{suffix}") if not p.name.startswith("."))
    return {f"{path.parent.name}/{path.name.removesuffix(suffix)}": path for path in paths}
