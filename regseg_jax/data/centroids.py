"""Where each class is: the centroids that class-uniform sampling crops around."""

import concurrent.futures
import json
import os
import pathlib
import zipfile

import numpy as np
from tqdm import tqdm

from regseg_jax.data.sources.source import Source
from regseg_jax.runtime.files import replacing

# For each class i32[n, 3]: rows of (example, row, column).
Centroids = tuple[np.ndarray, ...]


def load_centroids(
    path: str | os.PathLike, source: Source, num_classes: int, tile_size: int
) -> Centroids:
    """Reads the centroids of a source, or finds them once and keeps them in a file.

    A file of other versions of the same images, of another tile size, or one that is truncated is
    made again.

    Args:
      path: of the file.
      source: the training images; every label is decoded where the file is made.
      num_classes: of its class table.
      tile_size: see `find_centroids`.

    Returns:
      For each class i32[n, 3], rows of (example, row, column) in order.

    Raises:
      ValueError: if the file is of another data set, it cannot be written, or a label is bad.
    """
    path = pathlib.Path(path)
    fingerprint = source.fingerprint()
    made_from = {**fingerprint._asdict(), "tile_size": tile_size, "num_classes": num_classes}
    if path.exists():
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                saved, rows = json.loads(str(file["made_from"])), file["rows"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            saved = made_from | {"version": "unreadable"}
        if saved.get("data_set") != fingerprint.data_set:
            raise ValueError(
                f"{path} holds the centroids of another data set or class table; set "
                "--config.data.centroid_file to another file, or delete this one"
            )
        if saved == made_from:
            return _split(rows, num_classes)
    rows = _find_all(source, num_classes, tile_size)
    try:
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, rows=rows, made_from=json.dumps(made_from))
    except OSError as error:
        raise ValueError(
            f"cannot write {path}: {error}; set --config.data.centroid_file to another file"
        ) from None
    return _split(rows, num_classes)


def find_centroids(label: np.ndarray, num_classes: int, tile_size: int) -> np.ndarray:
    """The centre of mass of each class in each tile of a label.

    Args:
      label: uint8[H, W] of training ids.
      num_classes: ids from there on are left out.
      tile_size: the label is cut into squares of this side from its upper left corner; those at
        the other borders may be smaller.

    Returns:
      i32[n, 3], rows of (class, row, column), rounded down.
    """
    found = []
    for top in range(0, label.shape[0], tile_size):
        for left in range(0, label.shape[1], tile_size):
            tile = label[top : top + tile_size, left : left + tile_size]
            by_row, by_column = (_histograms(x)[:, :num_classes] for x in (tile, tile.T))
            counts = by_row.sum(0)
            present = np.flatnonzero(counts)
            rows, columns = (
                (np.arange(len(x)) @ x)[present] // counts[present] for x in (by_row, by_column)
            )
            found.append(np.stack([present, top + rows, left + columns], axis=1))
    return np.concatenate(found).astype(np.int32)


def _histograms(label: np.ndarray) -> np.ndarray:
    """i64[H, 256]: how often each value is in each row."""
    cells = label + 256 * np.arange(len(label))[:, None]
    return np.bincount(cells.ravel(), minlength=256 * len(label)).reshape(-1, 256)


def _find_all(source: Source, num_classes: int, tile_size: int) -> np.ndarray:
    """i32[n, 4], rows of (class, example, row, column)."""

    def find(index: int) -> np.ndarray:
        rows = find_centroids(source[index]["label"], num_classes, tile_size)
        return np.insert(rows, 1, index, axis=1)

    with concurrent.futures.ThreadPoolExecutor() as pool:  # decoding releases Python's lock
        found = pool.map(find, range(len(source)))
        bar = tqdm(found, "finding centroids", len(source), unit="image", leave=False, disable=None)
        try:
            return np.concatenate(list(bar))
        finally:
            pool.shutdown(cancel_futures=True)


def _split(rows: np.ndarray, num_classes: int) -> Centroids:
    return tuple(rows[rows[:, 0] == i, 1:] for i in range(num_classes))
