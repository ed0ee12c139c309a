"""Packs image and label files into a few large ones; `sources.packed` reads them."""

import concurrent.futures
import contextlib
import fcntl
import os
import pathlib
import shutil
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from regseg_jax.data.decode import open_file
from regseg_jax.data.sources.packed import INDEX_FILE, INDEX_VERSION, join_files
from regseg_jax.data.sources.source import FileSource
from regseg_jax.runtime.files import check_new, write_json

# Of one example, as Grain wants it; images and labels are compressed already.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_READ_AHEAD = 64  # examples in memory while the one before is written
_ROOM = 1.01  # what records and shards add to the files


def pack_sources(
    sources: Mapping[str, FileSource], data_set: str, output: str | os.PathLike, shard_bytes: int
) -> None:
    """Writes a packed folder, under a progress bar.

    The folder is there when all of it is, and not before: what an interrupted start leaves has
    another name, `.NAME.partial`, and the next start replaces it.

    Args:
      sources: by split.
      data_set: `config.data.source`.
      output: the folder; it must not exist.
      shard_bytes: a shard is closed when it has as many.

    Raises:
      ValueError: before anything is written if output exists, the disk is too full, or another
        process packs into it; later if a file cannot be read.
    """
    check_new(output)
    output = pathlib.Path(output)
    files = [source.load_files(i) for source in sources.values() for i in range(len(source))]
    needed = sum(os.path.getsize(path) for pair in files for path in pair if path is not None)
    output.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(output.parent).free) < _ROOM * needed:
        raise ValueError(
            f"{output} needs {_ROOM * needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; make "
            "room, or choose another output"
        )
    bar = tqdm(total=len(files), unit="image", disable=None)
    with _partial_folder(output) as folder, bar:
        splits = {}
        for split, source in sources.items():
            bar.set_description(f"packing {split}")
            splits[split] = {
                "images": len(source),
                "label_format": source.label_format,
                "image_sizes": source.image_sizes,
                "shards": _write_shards(source, folder, split, shard_bytes, bar),
            }
        table = next(iter(sources.values())).class_table
        index = {
            "version": INDEX_VERSION,
            "source": data_set,
            "class_names": table.class_names,
            "splits": splits,
        }
        write_json(folder / INDEX_FILE, index)


@contextlib.contextmanager
def _partial_folder(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty folder that becomes `output` at the end; an error leaves nothing."""
    folder = output.with_name(f".{output.name}.partial")
    folder.mkdir(exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is packing into {output}; wait for it") from None
        for left in folder.iterdir():  # by one that was killed
            left.unlink()
        try:
            yield folder
            check_new(output)
            os.rename(folder, output)
        except BaseException:
            shutil.rmtree(folder)
            raise
    finally:
        os.close(lock)


def _write_shards(
    source: FileSource, folder: pathlib.Path, split: str, shard_bytes: int, bar: tqdm
) -> list[dict[str, Any]]:
    """The index's rows of the shards."""
    shards, writer, size = [], None, 0
    for names, record in _load_records(source):
        if writer is None:
            path = folder / f"{split}-{len(shards):05d}.array_record"
            writer, size = ArrayRecordWriter(str(path), _WRITER_OPTIONS), 0
            shards.append({"file": path.name, "bytes": 0, "names": [], "checksums": []})
        writer.write(record)
        shards[-1]["names"].append(names)
        shards[-1]["checksums"].append(zlib.crc32(record))
        size += len(record)
        bar.update()
        if size >= shard_bytes:
            _close(writer, folder, shards[-1])
            writer = None
    if writer is not None:
        _close(writer, folder, shards[-1])
    return shards


def _close(writer: ArrayRecordWriter, folder: pathlib.Path, shard: dict[str, Any]) -> None:
    writer.close()
    path = folder / shard["file"]
    with path.open("rb") as file:
        os.fsync(file.fileno())
    shard["bytes"] = path.stat().st_size


def _load_records(source: FileSource) -> Iterator[tuple[tuple[str, str | None], bytes]]:
    """File names and record of each example, in order; several are read at once."""

    def load(index: int) -> tuple[tuple[str, str | None], bytes]:
        files = source.load_files(index)
        names = tuple(path and pathlib.Path(path).name for path in files)
        return names, join_files(*(path and _read(path) for path in files))

    with concurrent.futures.ThreadPoolExecutor() as pool:
        for start in range(0, len(source), _READ_AHEAD):
            yield from pool.map(load, range(start, min(start + _READ_AHEAD, len(source))))


def _read(path: str) -> bytes:
    with open_file(path) as file:
        return file.read()
