"""A validation split held back from the training images, where a data set has none."""

import dataclasses
import hashlib
import json
import pathlib

from regseg_jax.data.sources.source import FolderSource
from regseg_jax.runtime.files import write_json

VAL_SPLIT_FILE = "val_split.json"


def choose_names(source: FolderSource, fraction: float, seed: int) -> tuple[str, ...]:
    """The names of the images to hold back: a fraction of the source, sorted.

    The choice follows from seed and names alone, so that it is the same on every machine.

    Raises:
      ValueError: if that would be none of the images, or all.
    """
    names = [_get_name(pair) for pair in source.pairs]
    count = round(fraction * len(names))
    if not 0 < count < len(names):
        raise ValueError(
            f"config.folder.val_fraction {fraction} of {len(names)} training images is {count}; "
            "set it so that images are left on both sides"
        )
    names.sort(key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    return tuple(sorted(names[:count]))


def hold_out(source: FolderSource, names: tuple[str, ...]) -> tuple[FolderSource, FolderSource]:
    """The source without the images of these names, and these images.

    Raises:
      ValueError: names an image that is not there.
    """
    if missing := set(names) - {_get_name(pair) for pair in source.pairs}:
        raise ValueError(
            f"{len(missing)} images of this run's {VAL_SPLIT_FILE} are missing, such as "
            f"{min(missing)}; restore them, or start in another workdir"
        )
    held = [_get_name(pair) in set(names) for pair in source.pairs]
    return _select(source, [not x for x in held]), _select(source, held)


def load_names(workdir: pathlib.Path) -> tuple[str, ...] | None:
    """The names that a run holds back; None if it has not written them down yet."""
    path = workdir / VAL_SPLIT_FILE
    return tuple(json.loads(path.read_text())["names"]) if path.exists() else None


def save_names(workdir: pathlib.Path, names: tuple[str, ...], fraction: float, seed: int) -> None:
    """Writes down what a run holds back, so that every later start does the same."""
    content = {"val_fraction": fraction, "seed": seed, "names": names}
    write_json(workdir / VAL_SPLIT_FILE, content)


def _get_name(pair: tuple[str, str | None]) -> str:
    return pathlib.Path(pair[0]).name


def _select(source: FolderSource, keep: list[bool]) -> FolderSource:
    pairs = tuple(pair for pair, kept in zip(source.pairs, keep, strict=True) if kept)
    sizes = source.image_sizes
    if sizes is not None:
        sizes = tuple(size for size, kept in zip(sizes, keep, strict=True) if kept)
        sizes = sizes if len(set(sizes)) > 1 else None
    return dataclasses.replace(source, pairs=pairs, image_sizes=sizes)
