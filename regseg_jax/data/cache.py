"""Decoded examples in one file, for machines where decoding holds training back.

Cityscapes' 2975 training images take 25 GB. `NAME.bin` holds each image and then its label,
one after the other as plain bytes; `NAME.json` says what it was made from, the sizes, and a
checksum of each example.
"""

import concurrent.futures
import dataclasses
import fcntl
import itertools
import json
import os
import pathlib
import zlib

import numpy as np
from tqdm import tqdm

from regseg_jax.data.sources.source import Example, Fingerprint, Source
from regseg_jax.runtime.files import write_json


@dataclasses.dataclass(frozen=True)
class CachedSource:
    """The examples of another source, read instead of decoded.

    Attributes:
      path: of the file of examples.
      names: of the examples.
      sizes: height and width of each.
      checksums: CRC-32 of each one's bytes.
      image_sizes: the source's.
      made_from: the source's fingerprint.
    """

    path: str
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    checksums: tuple[int, ...]
    image_sizes: tuple[tuple[int, int], ...] | None
    made_from: Fingerprint

    def __len__(self) -> int:
        """The number of images."""
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        """Reads an example.

        Raises:
          ValueError: if its bytes are not those that were written.
        """
        height, width = self.sizes[index]
        if self.image_sizes is None:
            offset = index * _count_bytes(self.sizes[0])
        else:
            offset = sum(map(_count_bytes, self.sizes[:index]))
        data = np.fromfile(self.path, np.uint8, _count_bytes((height, width)), offset=offset)
        if zlib.crc32(data) != self.checksums[index]:
            raise ValueError(
                f"{self.path} is damaged at example {index} ({self.names[index]}); delete it, and "
                "the next start makes it again"
            )
        image, label = np.split(data, [3 * height * width])
        return {
            "image": image.reshape(height, width, 3),
            "label": label.reshape(height, width),
            "name": self.names[index],
        }

    def fingerprint(self) -> Fingerprint:
        """See `Source`."""
        return self.made_from


def load_cached(folder: str | os.PathLike, name: str, source: Source) -> CachedSource:
    """Opens the cache of a source, or decodes it once and writes it.

    A cache of other files, or one that is truncated, is made again. Two runs may start at once:
    the second waits until the first has written the file.

    Args:
      folder: that holds caches; created where missing.
      name: of the cache in it.
      source: what is decoded.

    Raises:
      ValueError: if the folder cannot be written to or an example cannot be decoded; nothing
        half-written stays.
    """
    folder = pathlib.Path(folder)
    made_from = source.fingerprint()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (cached := _open(folder, name, source, made_from)) is None:
                _write(folder, name, source, made_from)
                cached = _open(folder, name, source, made_from)
    except OSError as error:
        raise ValueError(
            f"cannot keep decoded images in {folder}: {error}; set --config.data.cache_dir to "
            "another folder, or to nothing"
        ) from None
    return cached


def _count_bytes(size: tuple[int, int]) -> int:
    return 4 * size[0] * size[1]  # three channels and the label


def _open(
    folder: pathlib.Path, name: str, source: Source, made_from: Fingerprint
) -> CachedSource | None:
    """None if there is no complete cache of this source."""
    path = folder / f"{name}.bin"
    try:
        saved = json.loads((folder / f"{name}.json").read_text())
        sizes = tuple(map(tuple, saved["sizes"]))
        if saved["made_from"] != list(made_from):
            return None
        if path.stat().st_size != sum(map(_count_bytes, sizes)):
            return None
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return CachedSource(
        path=str(path),
        names=tuple(saved["names"]),
        sizes=sizes,
        checksums=tuple(saved["checksums"]),
        image_sizes=source.image_sizes,
        made_from=made_from,
    )


def _write(folder: pathlib.Path, name: str, source: Source, made_from: Fingerprint) -> None:
    sizes = source.image_sizes or (source[0]["label"].shape,) * len(source)
    offsets = [0, *itertools.accumulate(map(_count_bytes, sizes))]
    partial = folder / f"{name}.bin.partial"  # one name: what a kill leaves is overwritten
    with partial.open("wb") as file:

        def copy(index: int) -> tuple[str, int]:
            example = source[index]
            if example["label"].shape != sizes[index]:
                raise ValueError(
                    f"image {example['name']} is of another size than the first of its split; "
                    "resize the images to one size"
                )
            data = example["image"].tobytes() + example["label"].tobytes()
            os.pwrite(file.fileno(), data, offsets[index])
            return example["name"], zlib.crc32(data)

        try:
            with concurrent.futures.ThreadPoolExecutor() as pool:  # decoding releases the lock
                done = pool.map(copy, range(len(source)))
                try:
                    names, checksums = zip(
                        *tqdm(done, f"caching {name}", len(source), unit="image", disable=None),
                        strict=True,
                    )
                finally:
                    pool.shutdown(cancel_futures=True)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            partial.unlink()
            raise
    description = {"made_from": made_from, "sizes": sizes, "names": names, "checksums": checksums}
    os.replace(partial, folder / f"{name}.bin")
    write_json(folder / f"{name}.json", description)
