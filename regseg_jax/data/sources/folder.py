"""A data set of one's own: a folder of images and a folder of labels for each split."""

import concurrent.futures
import os
import pathlib

from regseg_jax.data.classes import ClassTable
from regseg_jax.data.decode import LabelFormat, read_image_size
from regseg_jax.data.sources.source import FolderSource, pair_files


def load_folder(
    data_dir: str | os.PathLike,
    split: str,
    class_table: ClassTable,
    *,
    image_dir: str,
    label_dir: str,
    label_stem: str,
    label_format: LabelFormat,
) -> FolderSource:
    """Finds the image and label files of a split and reads the images' sizes, which may differ.

    Args:
      data_dir: the folder that holds the data set.
      split: any name.
      class_table: the classes.
      image_dir: the folder of images inside data_dir, with `{split}` for the split.
      label_dir: the folder of labels, likewise.
      label_stem: the stem of a label file, with `{stem}` for its image's.
      label_format: see `FolderSource`.

    Raises:
      ValueError: names the missing folder, the images without a label and labels without an
        image, or the image that cannot be read.
    """
    folders = [pathlib.Path(data_dir) / name.format(split=split) for name in (image_dir, label_dir)]
    for folder, key in zip(folders, ("image_dir", "label_dir"), strict=True):
        if not folder.is_dir():
            raise ValueError(
                f"there is no folder {folder} of the split {split!r}; set --config.data.data_dir "
                f"and --config.folder.{key} so that they name it"
            )
    pairs = pair_files(*folders, label_stem)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        sizes = tuple(pool.map(read_image_size, (image for image, _ in pairs)))
    same = len(set(sizes)) == 1
    return FolderSource(pairs, class_table, label_format, None if same else sizes)
