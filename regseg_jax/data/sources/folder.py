"""Your own data set: a folder of images and a folder of labels for each split."""

import concurrent.futures
import os
import pathlib
import re

from regseg_jax.data.classes import ClassTable
from regseg_jax.data.decode import read_image_size
from regseg_jax.data.labels import LabelFormat
from regseg_jax.data.sources.pairing import pair_files
from regseg_jax.data.sources.source import FolderSource


def load_folder(
    data_dir: str | os.PathLike,
    split: str,
    class_table: ClassTable,
    *,
    image_dir: str,
    label_dir: str,
    label_stem: str,
    label_format: LabelFormat,
    image_stem: str = "{stem}",
) -> FolderSource:
    """Finds the image and label files of a split and reads the images' sizes, which may differ.

    Args:
      data_dir: the folder that holds the data set.
      split: any name.
      class_table: the classes.
      image_dir: the folder of images inside data_dir, with `{split}` for the split.
      label_dir: the folder of labels, likewise; it may be the same one.
      label_stem: the stem of a label file, with `{stem}` for what it has in common with its image.
      label_format: see `FolderSource`.
      image_stem: the stem of an image file, likewise.

    Raises:
      ValueError: names the missing folder, or the images without a label and labels without an
        image.
    """
    folders = [pathlib.Path(data_dir) / name.format(split=split) for name in (image_dir, label_dir)]
    for folder, key in zip(folders, ("image_dir", "label_dir"), strict=True):
        if not folder.is_dir():
            splits = ", ".join(_find_splits(pathlib.Path(data_dir), image_dir)) or "none"
            raise ValueError(
                f"there is no folder {folder} of the split {split!r} (splits that are there: "
                f"{splits}); set --config.data.train_split and --config.data.eval_split to splits "
                f"that are there, --config.data.data_dir and --config.folder.{key} so that they "
                "name the folder, or --config.folder.val_fraction=0.1 to hold back a tenth of the "
                "training images for evaluation"
            )
    pairs = pair_files(*folders, label_stem, image_stem)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        sizes = tuple(pool.map(_read_size, (image for image, _ in pairs)))
    same = len(set(sizes)) == 1
    return FolderSource(pairs, class_table, label_format, None if same else sizes)


def _read_size(path: str) -> tuple[int, int]:
    try:
        return read_image_size(path)
    except ValueError:
        return 0, 0  # decoding it says why; until then the others can be looked at


def _find_splits(data_dir: pathlib.Path, image_dir: str) -> list[str]:
    """What stands for `{split}` in the folders that are there."""
    if "{split}" not in image_dir:
        return []
    before, after = map(re.escape, image_dir.split("{split}", 1))
    pattern = re.compile(f"{before}([^/]+){after}")
    paths = data_dir.glob(image_dir.format(split="*")) if data_dir.is_dir() else ()
    found = (pattern.fullmatch(path.relative_to(data_dir).as_posix()) for path in paths)
    return sorted(match[1] for match in found if match and not match[1].startswith("."))
