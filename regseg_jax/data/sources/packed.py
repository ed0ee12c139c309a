"""A data set packed into a few large files: `regseg_jax.pack` writes them, this reads them.

A packed folder holds `packed.json`, the index, and shards of ArrayRecord: a record is an example,
the bytes of its image file and of its label file as they were. A training step's random order
reads one record an example, so a file system opens no small files.
"""

import dataclasses
import json
import os
import pathlib
import struct
import zlib
from collections.abc import Sequence
from typing import Any, Self

from array_record.python.array_record_data_source import ArrayRecordDataSource

from regseg_jax.data.classes import ClassTable
from regseg_jax.data.decode import StoredFile
from regseg_jax.data.labels import LabelFormat
from regseg_jax.data.sources.source import FileSource, Fingerprint, create_fingerprint

INDEX_FILE = "packed.json"
INDEX_VERSION = 1
_IMAGE_BYTES = struct.Struct("<Q")  # before them, how many


def join_files(image: bytes, label: bytes | None) -> bytes:
    """The record of an example."""
    return _IMAGE_BYTES.pack(len(image)) + image + (label or b"")


def split_record(record: bytes) -> tuple[bytes, bytes]:
    """The bytes of the image file and of the label file; the latter empty if there is none."""
    (length,) = _IMAGE_BYTES.unpack_from(record)
    start = _IMAGE_BYTES.size
    return record[start : start + length], record[start + length :]


@dataclasses.dataclass(frozen=True, eq=False)
class PackedSource(FileSource):
    """The examples of a split, in the order in which they were packed.

    Attributes:
      records: of the split's shards, one after the other.
      positions: of the examples among the records.
      shards: for each record, the path of its shard.
      names: for each record, the names of its image and label file; None: it has no label.
      checksums: for each record, the CRC-32 of its bytes.
      class_table, label_format, image_sizes: see `FileSource`.
    """

    records: ArrayRecordDataSource
    positions: tuple[int, ...]
    shards: tuple[str, ...]
    names: tuple[tuple[str, str | None], ...]
    checksums: tuple[int, ...]
    class_table: ClassTable
    label_format: LabelFormat
    image_sizes: tuple[tuple[int, int], ...] | None

    def __len__(self) -> int:
        """The number of images."""
        return len(self.positions)

    def get_image_name(self, index: int) -> str:
        """See `FileSource`."""
        return self.names[self.positions[index]][0]

    def load_files(self, index: int) -> tuple[StoredFile, StoredFile | None]:
        """See `FileSource`.

        Raises:
          ValueError: if the record is not what was written; names the shard.
        """
        position = self.positions[index]
        shard, (image_name, label_name) = self.shards[position], self.names[position]
        fault = ""
        try:
            record = self.records[position]
        except Exception as error:  # whatever ArrayRecord raises for damaged files
            fault = f" ({str(error).splitlines()[0]})"
        if fault or zlib.crc32(record) != self.checksums[position]:
            raise ValueError(
                f"{shard} is damaged at {image_name}{fault}; restore the file, or pack again"
            )
        image, label = (
            StoredFile(f"{name} in {shard}", data)
            for name, data in zip((image_name, label_name), split_record(record), strict=True)
        )
        return image, label if label_name is not None else None

    def select(self, indices: Sequence[int]) -> Self:
        """See `FileSource`."""
        positions = tuple(self.positions[i] for i in indices)
        sizes = self._select_sizes(indices)
        return dataclasses.replace(self, positions=positions, image_sizes=sizes)

    def fingerprint(self) -> Fingerprint:
        """See `Source`; the data set is the same as that of the files that were packed."""
        names = [name for i in self.positions for name in self.names[i] if name is not None]
        return create_fingerprint(
            names, [self.checksums[i] for i in self.positions], self.class_table
        )


def is_packed(data_dir: str | os.PathLike) -> bool:
    """Whether a folder holds a packed data set."""
    return pathlib.Path(data_dir, INDEX_FILE).is_file()


def has_packed_split(data_dir: str | os.PathLike, split: str) -> bool:
    """Whether a packed data set has this split."""
    return split in _read_index(pathlib.Path(data_dir))["splits"]


def load_packed(
    data_dir: str | os.PathLike, split: str, class_table: ClassTable, data_set: str
) -> PackedSource:
    """Opens a split; reads the index alone.

    Args:
      data_dir: the packed folder.
      split: its name; `trainval` is train, then val, where it is no split of its own.
      class_table: how raw label values become training ids.
      data_set: `config.data.source`, which the folder has to be packed from.

    Raises:
      ValueError: if there is no such split, the folder is of another data set, or a shard is
        missing or was changed; names it.
    """
    folder = pathlib.Path(data_dir)
    index = _read_index(folder)
    if index["source"] != data_set:
        raise ValueError(
            f"{folder} was packed from {index['source']}, and config.data.source is {data_set}; "
            f"set --config.data.source={index['source']}, or --config.data.data_dir to another "
            "folder"
        )
    splits = index["splits"]
    parts = [split]
    if split == "trainval" and split not in splits and data_set != "folder":
        parts = ["train", "val"]
    if not splits.keys() >= set(parts):
        raise ValueError(
            f"{folder} has no split {split!r} (splits that are there: {', '.join(splits)}); pack "
            f"again with --splits={','.join(dict.fromkeys((*splits, *parts)))}"
        )
    shards = [shard for part in parts for shard in splits[part]["shards"]]
    for shard in shards:
        _check_shard(folder / shard["file"], shard["bytes"])
    paths = [str(folder / shard["file"]) for shard in shards]
    counts = [len(shard["names"]) for shard in shards]
    sizes = splits[parts[0]]["image_sizes"]  # None where there are several parts
    return PackedSource(
        # The counts in the paths save opening each shard now.
        records=ArrayRecordDataSource(
            [f"{path}[0:{count}]" for path, count in zip(paths, counts, strict=True)]
        ),
        positions=tuple(range(sum(counts))),
        shards=tuple(path for path, count in zip(paths, counts, strict=True) for _ in range(count)),
        names=tuple(tuple(names) for shard in shards for names in shard["names"]),
        checksums=tuple(checksum for shard in shards for checksum in shard["checksums"]),
        class_table=class_table,
        label_format=splits[parts[0]]["label_format"],
        image_sizes=None if sizes is None else tuple(map(tuple, sizes)),
    )


def _read_index(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / INDEX_FILE
    try:
        index = json.loads(path.read_text())
        version = index["version"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged; restore it, or pack again") from None
    if version != INDEX_VERSION:
        raise ValueError(
            f"{path} is of version {version}, and this reads {INDEX_VERSION}; pack again"
        )
    return index


def _check_shard(path: pathlib.Path, size: int) -> None:
    if not path.is_file():
        raise ValueError(f"the shard {path} is missing; restore it, or pack again")
    if (found := path.stat().st_size) != size:
        raise ValueError(
            f"the shard {path} has {found} bytes, not the {size} that were written; restore it, "
            "or pack again"
        )
