"""Cityscapes prepared by TensorFlow Datasets as ArrayRecord, read without TensorFlow.

Where TensorFlow is installed, once:

    tfds build cityscapes/semantic_segmentation --file_format=array_record --data_dir=DATA_DIR \
        --manual_dir=FOLDER_OF_THE_TWO_ZIPS
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.json_format import ParseError
from tensorflow_datasets.core.dataset_info import DatasetInfoFileError

from regseg_jax.data.classes import IGNORE_LABEL, ClassTable
from regseg_jax.data.labels import to_train_ids
from regseg_jax.data.sources.source import Example, Fingerprint, fingerprint_files

NAME = "cityscapes/semantic_segmentation"
_SPLITS = {
    **{"train": "train", "val": "validation", "trainval": "train+validation"},
    "test": "test",
}


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity, for the cache
class TfdsCityscapes:
    """A split of Cityscapes; the same examples as the folders', in TFDS's order.

    Attributes:
      data_dir: the folder that holds `cityscapes/semantic_segmentation/`.
      split: train, val, trainval, or test, whose labels are all ignored.
      class_table: how raw label values become training ids.
    """

    data_dir: str
    split: str
    class_table: ClassTable
    image_sizes: None = dataclasses.field(default=None, init=False)  # all are of one size

    def __post_init__(self) -> None:
        """Raises ValueError if there is no such data set."""
        if self.split not in _SPLITS:
            raise ValueError(f"split {self.split!r} is none of {', '.join(_SPLITS)}")
        self._open()

    def __len__(self) -> int:
        """The number of images."""
        return len(self._open())

    def __getitem__(self, index: int) -> Example:
        """Decodes an example.

        Raises:
          ValueError: if its label has a value outside the class table.
        """
        example = self._open()[index]
        name = f"{example['image_id'].decode()}_leftImg8bit"  # as the folders' files
        if self.split == "test":
            label = np.full(example["image_left"].shape[:2], IGNORE_LABEL, np.uint8)
        else:
            raw = example["segmentation_label"][..., 0]
            label = to_train_ids(raw, self.class_table, "ids", f"{NAME} {self.split} {name}")
        return {"image": example["image_left"], "label": label, "name": name}

    def fingerprint(self) -> Fingerprint:
        """See `Source`."""
        folder = pathlib.Path(self._builder().data_dir)
        return fingerprint_files(sorted(map(str, folder.iterdir())), self.class_table, self.split)

    @functools.lru_cache(maxsize=4)  # noqa: B019  opened once in each worker process
    def _open(self) -> Sequence[dict]:
        try:
            return self._builder().as_data_source(_SPLITS[self.split])
        except NotImplementedError:
            raise ValueError(
                f"{self._builder().data_dir} is not prepared as ArrayRecord; prepare it with "
                f"`tfds build {NAME} --file_format=array_record` in a folder of its own"
            ) from None

    def _builder(self) -> tfds.core.DatasetBuilder:
        root = os.path.join(self.data_dir, NAME)
        versions = sorted(os.listdir(root)) if os.path.isdir(root) else []
        if not versions:
            raise ValueError(
                f"{self.data_dir} holds no {NAME} prepared by TensorFlow Datasets; set "
                "--config.data.data_dir to the --data_dir that `tfds build` was given"
            )
        folder = os.path.join(root, versions[-1])
        try:
            return tfds.builder_from_directory(folder)
        except (DatasetInfoFileError, ParseError) as error:
            raise ValueError(f"cannot read {folder}: {error}; prepare it again") from None
