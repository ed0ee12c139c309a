"""Data sets on disk as random-access sources of decoded examples.

A source is a picklable object; an example is a dict of `image` uint8[H, W, 3], `label` uint8[H, W]
of training ids or `IGNORE_LABEL`, and `name`.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from regseg_jax.data.classes import IGNORE_LABEL, ClassTable
from regseg_jax.data.decode import DECODER_VERSION, ImageFile, load_image, open_image
from regseg_jax.data.labels import LabelFormat, load_raw_label, to_train_ids
from regseg_jax.data.sources.pairing import pair_files

Example = dict[str, Any]


class Fingerprint(NamedTuple):
    """What a file made from a source must know, to be used again or made again.

    Attributes:
      data_set: a digest of the examples' names and the class table.
      version: a digest of the files' sizes and times of change, and of how they are decoded.
    """

    data_set: str
    version: str


class Source(Protocol):
    """Random access to examples, each a pure function of its index.

    Attributes:
      image_sizes: height and width of every example; None if all are of one size.
    """

    image_sizes: tuple[tuple[int, int], ...] | None

    def fingerprint(self) -> Fingerprint:
        """Tells data sets, and versions of one, apart; reads no image."""
        ...

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def __getitem__(self, index: int) -> Example:
        """The example, decoded."""
        ...


class FileSource:
    """What sources have in common that hold encoded image and label files.

    Attributes:
      class_table: how raw label values become training ids.
      label_format: `ids` for one channel of raw label ids, `train_ids` for one of training ids,
        `colors` for RGB.
      image_sizes: height and width of every image; None if all are of one size.
    """

    class_table: ClassTable
    label_format: LabelFormat
    image_sizes: tuple[tuple[int, int], ...] | None

    def __len__(self) -> int:
        """The number of images."""
        raise NotImplementedError

    def get_image_name(self, index: int) -> str:
        """The name of the image file."""
        raise NotImplementedError

    def load_files(self, index: int) -> tuple[ImageFile, ImageFile | None]:
        """The files of an example; None for a label that is not public."""
        raise NotImplementedError

    def select(self, indices: Sequence[int]) -> Self:
        """A source of these examples alone."""
        raise NotImplementedError

    @property
    def image_names(self) -> tuple[str, ...]:
        """The names of all image files."""
        return tuple(self.get_image_name(i) for i in range(len(self)))

    def __getitem__(self, index: int) -> Example:
        """Decodes an example.

        Raises:
          ValueError: names the file that cannot be read, whose size differs from its image's, or
            that has a value outside the class table.
        """
        image_file, label_file = self.load_files(index)
        image = load_image(image_file)
        name = pathlib.Path(self.get_image_name(index)).stem
        if label_file is None:  # every pixel is ignored
            label = np.full(image.shape[:2], IGNORE_LABEL, np.uint8)
            return {"image": image, "label": label, "name": name}
        raw = load_raw_label(label_file, self.label_format)
        label = to_train_ids(raw, self.class_table, self.label_format, label_file)
        if image.shape[:2] != label.shape:
            turned = ""
            if (orientation := open_image(image_file, load=False).orientation) != 1:
                turned = (
                    f" after it was turned upright by its EXIF orientation {orientation}, as "
                    "labels never are"
                )
            raise ValueError(
                f"{label_file} is {label.shape[0]} x {label.shape[1]}, its image {image_file} "
                f"{image.shape[0]} x {image.shape[1]}{turned}; make the two of one size"
            )
        return {"image": image, "label": label, "name": name}

    def load_raw_label(self, index: int) -> np.ndarray | None:
        """The label as stored, see `labels.load_raw_label`; None if it is not public."""
        label_file = self.load_files(index)[1]
        return None if label_file is None else load_raw_label(label_file, self.label_format)

    def _select_sizes(self, indices: Sequence[int]) -> tuple[tuple[int, int], ...] | None:
        if self.image_sizes is None:
            return None
        sizes = tuple(self.image_sizes[i] for i in indices)
        return sizes if len(set(sizes)) > 1 else None


@dataclasses.dataclass(frozen=True)
class FolderSource(FileSource):
    """Image files and their label files.

    Attributes:
      pairs: paths of image and label; None for a label that is not public.
      class_table, label_format, image_sizes: see `FileSource`.
    """

    pairs: tuple[tuple[str, str | None], ...]
    class_table: ClassTable
    label_format: LabelFormat
    image_sizes: tuple[tuple[int, int], ...] | None = None

    def __len__(self) -> int:
        """The number of images."""
        return len(self.pairs)

    def get_image_name(self, index: int) -> str:
        """See `FileSource`."""
        return pathlib.Path(self.pairs[index][0]).name

    def load_files(self, index: int) -> tuple[str, str | None]:
        """See `FileSource`: their paths."""
        return self.pairs[index]

    def select(self, indices: Sequence[int]) -> Self:
        """See `FileSource`."""
        pairs = tuple(self.pairs[i] for i in indices)
        return dataclasses.replace(self, pairs=pairs, image_sizes=self._select_sizes(indices))

    def fingerprint(self) -> Fingerprint:
        """See `Source`; the folder that holds the files may be moved."""
        paths = [path for pair in self.pairs for path in pair if path is not None]
        return fingerprint_files(paths, self.class_table)


def fingerprint_files(paths: list[str], class_table: ClassTable, split: str = "") -> Fingerprint:
    """The fingerprint of a data set of these files, and of a split where they hold several."""
    stats = [os.stat(path) for path in paths]
    return create_fingerprint(
        [pathlib.Path(path).name for path in paths],
        [(stat.st_size, stat.st_mtime_ns) for stat in stats],
        class_table,
        split,
    )


def create_fingerprint(
    names: Sequence[str], versions: Sequence[object], class_table: ClassTable, split: str = ""
) -> Fingerprint:
    """The fingerprint of files of these names; versions tell their contents apart."""
    data_set = [split, names, dataclasses.asdict(class_table)]
    content = [DECODER_VERSION, *versions]
    digests = (hashlib.sha256(json.dumps(x).encode()).hexdigest() for x in (data_set, content))
    return Fingerprint(*digests)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How a data set's folders are named: `{split}` + suffix holds the labels."""

    label_folder: str
    label_stem: str
    label_format: LabelFormat


# CamVid's two editions, told apart by the folder next to the images.
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
            pairs = pair_files(root / split, label_dir, layout.label_stem)
            return FolderSource(pairs, class_table, layout.label_format)
    expected = " or ".join(
        f"{split}/ next to {layout.label_folder.format(split=split)}/" for layout in _CAMVID_LAYOUTS
    )
    raise ValueError(
        f"{root} holds no CamVid {split} split: expected {expected}. "
        "Set --config.data.data_dir to the folder that holds them"
    )
