"""Finds the images and videos to predict, also in subfolders, and says what it leaves out."""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence

from regseg_jax.data.decode import IMAGE_SUFFIXES

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".mts")
)
_SYSTEM_FILES = ("thumbs.db", "desktop.ini")  # Windows'; macOS's are hidden


@dataclasses.dataclass(frozen=True)
class Input:
    """An image or a video.

    Attributes:
      path: of the file.
      name: of what is written for it, without suffix, relative to the output folder.
    """

    path: pathlib.Path
    name: str


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What was found.

    Attributes:
      images: sorted by folder as given.
      videos: likewise.
      skipped: files and folders left out, by the reason.
    """

    images: tuple[Input, ...]
    videos: tuple[Input, ...]
    skipped: dict[str, list[pathlib.Path]]

    def describe_skipped(self) -> str:
        """One line per reason, with the count and the first names."""
        return "\n".join(
            f"left out {len(paths)} ({reason}): {', '.join(map(str, paths[:3]))}"
            + (", ..." if len(paths) > 3 else "")
            for reason, paths in self.skipped.items()
        )


def find_inputs(
    paths: Sequence[str | os.PathLike], output: str | os.PathLike | None = None
) -> Inputs:
    """Expands folders and gives every file a unique name.

    A file in a folder is named by its path below that folder, without suffix; files that would
    then have the same name keep their suffix (`street.tif`, `street.webp`). A file given by itself
    is taken whatever its suffix.

    Args:
      paths: image or video files, or folders.
      output: a folder that is left out, because it holds predictions.

    Raises:
      ValueError: if a path does not exist, nothing is found, or two files would have one name.
    """
    skipped = collections.defaultdict(list)
    found: dict[pathlib.Path, pathlib.PurePath] = {}  # file -> its path below the folder given
    for path in map(pathlib.Path, paths):
        if not path.exists():
            raise ValueError(f"there is no {path}; pass images, videos or folders of them")
        if path.is_dir():
            files = list(_walk(path, pathlib.Path(output).resolve() if output else None, skipped))
            found |= {file: file.relative_to(path) for file in files}
        else:
            found[path] = pathlib.PurePath(path.name)
    inputs = Inputs((), (), dict(skipped))
    if not found:
        where = f" in {', '.join(map(str, paths))}" if paths else ""
        reasons = f" ({inputs.describe_skipped()})" if skipped else ""
        raise ValueError(f"no image or video{where}{reasons}; pass files or folders that hold some")
    named = _name(found)
    videos = tuple(x for x in named if x.path.suffix.lower() in VIDEO_SUFFIXES)
    return dataclasses.replace(
        inputs, images=tuple(x for x in named if x not in set(videos)), videos=videos
    )


def _walk(
    folder: pathlib.Path,
    output: pathlib.Path | None,
    skipped: dict[str, list[pathlib.Path]],
) -> Iterator[pathlib.Path]:
    """The images and videos below a folder, sorted; the rest goes into `skipped`."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name.lower() in _SYSTEM_FILES:
            skipped["hidden, or a file of the system"].append(path)
        elif path.is_dir() and path.is_symlink():
            skipped["a link to a folder; name it to have it"].append(path)
        elif path.is_dir() and path.resolve() == output:
            skipped["the output folder"].append(path)
        elif path.is_dir():
            yield from _walk(path, output, skipped)
        elif path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
            yield path
        else:
            reason = (
                f"no image or video has the suffix {path.suffix}" if path.suffix else "no suffix"
            )
            skipped[reason].append(path)


def _name(found: dict[pathlib.Path, pathlib.PurePath]) -> list[Input]:
    counts = collections.Counter(relative.with_suffix("") for relative in found.values())
    by_name: dict[str, pathlib.Path] = {}
    for path, relative in found.items():
        alone = counts[relative.with_suffix("")] == 1
        name = (relative.with_suffix("") if alone else relative).as_posix()
        if name in by_name:
            raise ValueError(
                f"{by_name[name]} and {path} would both write {name}.png; predict them into "
                "different folders"
            )
        by_name[name] = path
    return [Input(path, name) for name, path in by_name.items()]
