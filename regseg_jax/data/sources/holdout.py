"""A validation split held back from the training images, where a data set has none."""

import hashlib
import json
import pathlib

from regseg_jax.data.sources.source import FileSource
from regseg_jax.runtime.files import write_json

VAL_SPLIT_FILE = "val_split.json"


def choose_names(source: FileSource, fraction: float, seed: int) -> tuple[str, ...]:
    """The names of the images to hold back: a fraction of the source, sorted.

    The choice follows from seed and names alone, so that it is the same on every machine.

    Raises:
      ValueError: if that would be none of the images, or all.
    """
    names = list(source.image_names)
    count = round(fraction * len(names))
    if not 0 < count < len(names):
        raise ValueError(
            f"config.folder.val_fraction {fraction} of {len(names)} training images is {count}; "
            "set it so that images are left on both sides"
        )
    names.sort(key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    return tuple(sorted(names[:count]))


def hold_out(source: FileSource, names: tuple[str, ...]) -> tuple[FileSource, FileSource]:
    """The source without the images of these names, and these images.

    Raises:
      ValueError: names an image that is not there.
    """
    if missing := set(names).difference(source.image_names):
        raise ValueError(
            f"{len(missing)} images of this run's {VAL_SPLIT_FILE} are missing, such as "
            f"{min(missing)}; restore them, or start in another workdir"
        )
    held, parts = set(names), ([], [])
    for i, name in enumerate(source.image_names):
        parts[name in held].append(i)
    return source.select(parts[0]), source.select(parts[1])


def load_names(workdir: pathlib.Path) -> tuple[str, ...] | None:
    """The names that a run holds back; None if it has not written them down yet."""
    path = workdir / VAL_SPLIT_FILE
    return tuple(json.loads(path.read_text())["names"]) if path.exists() else None


def save_names(workdir: pathlib.Path, names: tuple[str, ...], fraction: float, seed: int) -> None:
    """Writes down what a run holds back, so that every later start does the same."""
    content = {"val_fraction": fraction, "seed": seed, "names": names}
    write_json(workdir / VAL_SPLIT_FILE, content)
