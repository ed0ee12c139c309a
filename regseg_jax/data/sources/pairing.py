"""Which files of a folder are images, and which label file belongs to which image."""

import collections
import pathlib
import re
import unicodedata
from collections.abc import Mapping, Sequence

from regseg_jax.data.decode import IMAGE_SUFFIXES
from regseg_jax.data.notices import say_once

# A label in the folder of the images may have its image's name: the file of a lossy format, which
# cannot hold labels, is then the image.
_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")


def find_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The image files of a folder, sorted; hidden ones, such as macOS's `._x.png`, are skipped."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
        if path.is_file()
    )


def list_images(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The image files of a folder by stem, sorted; raises ValueError if two have one stem."""
    return _by_stem(find_files(folder), "{stem}")


def pair_files(
    image_dir: pathlib.Path, label_dir: pathlib.Path, label_stem: str, image_stem: str = "{stem}"
) -> tuple[tuple[str, str], ...]:
    """The image files of a folder, each with its label file.

    Names are compared after Unicode normalisation (NFC), because some systems write accents as
    separate characters. Both may be in one folder.

    Args:
      image_dir: the folder of images.
      label_dir: the folder of labels.
      label_stem: the stem of a label file, with `{stem}` for what it has in common with its image.
      image_stem: the stem of an image file, likewise.

    Raises:
      ValueError: names what is missing.
    """
    if not image_dir.is_dir():
        raise ValueError(f"there is {label_dir} but no folder of images {image_dir}")
    image_files, label_files = find_files(image_dir), find_files(label_dir)
    if image_dir.resolve() == label_dir.resolve():
        image_files, label_files = _tell_apart(image_files, label_stem, image_stem)
    images, labels = _by_stem(image_files, image_stem), _by_stem(label_files, label_stem)
    if not images:
        kind = "image" if image_stem == "{stem}" else f"image that is called {image_stem}"
        raise ValueError(f"{image_dir} holds no {kind}; {describe_contents(image_dir)}")
    check_pairs(images, labels, image_dir, label_dir, "complete the pairs or remove them")
    return tuple((str(images[stem]), str(labels[stem])) for stem in images)


def check_pairs(
    images: Mapping[str, pathlib.Path],
    labels: Mapping[str, pathlib.Path],
    image_dir: pathlib.Path,
    label_dir: pathlib.Path,
    fix: str,
) -> None:
    """Raises ValueError, with what fixes it, where an image or a label is alone with its key."""
    without_label = [str(path) for key, path in images.items() if key not in labels]
    without_image = [str(path) for key, path in labels.items() if key not in images]
    if without_label or without_image:
        raise ValueError(
            f"{len(without_label)} images in {image_dir} have no label in {label_dir}"
            f"{_list_some(without_label)}, {len(without_image)} labels have no image"
            f"{_list_some(without_image)}; {fix}"
        )


def _list_some(paths: Sequence[str]) -> str:
    """Up to three of the paths in brackets, after a space; nothing if there are none."""
    if not paths:
        return ""
    return f" ({', '.join(sorted(paths)[:3])}{'...' if len(paths) > 3 else ''})"


def describe_contents(folder: pathlib.Path) -> str:
    """`it holds .npy (12 files), .txt (1 file), 3 folders`: for errors where no image is."""
    counts: collections.Counter[str] = collections.Counter()
    num_folders = 0
    for path in folder.iterdir():
        if path.is_dir():
            num_folders += 1
        elif not path.name.startswith("."):
            counts[path.suffix or path.name] += 1
    seen = [f"{suffix} ({n} file{'s'[: n > 1]})" for suffix, n in counts.most_common()]
    if num_folders:
        seen.append(f"{num_folders} folder{'s'[: num_folders > 1]}")
    return f"it holds {', '.join(seen)}" if seen else "it is empty"


def match_stem(pattern: str, path: pathlib.Path) -> str | None:
    """What stands for `{stem}` in the name of a file, normalised (NFC); None: no match."""
    before, _, after = unicodedata.normalize("NFC", pattern).partition("{stem}")
    stem = unicodedata.normalize("NFC", path.stem)
    match = re.fullmatch(f"{re.escape(before)}(.+){re.escape(after)}", stem)
    return match[1] if match else None


def _by_stem(paths: list[pathlib.Path], pattern: str) -> dict[str, pathlib.Path]:
    by_stem: dict[str, pathlib.Path] = {}
    for path in paths:
        stem = match_stem(pattern, path)
        if stem is None:
            say_once(f"files of {path.parent} that are not called {pattern} are left out", path)
        elif stem in by_stem:
            raise ValueError(
                f"{by_stem[stem]} and {path} differ in their suffix alone; remove or rename "
                "one, because images are told apart by their names without suffix"
            )
        else:
            by_stem[stem] = path
    return by_stem


def _tell_apart(
    paths: list[pathlib.Path], label_stem: str, image_stem: str
) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """The images and the labels of one folder."""
    if label_stem == image_stem:
        images = [path for path in paths if path.suffix.lower() in _JPEG_SUFFIXES]
    else:
        stems = {unicodedata.normalize("NFC", path.stem) for path in paths}

        def is_image(path: pathlib.Path) -> bool:
            # An image may be called like a label: gas_mask.jpg, next to gas_mask_mask.png.
            stem = match_stem(image_stem, path)
            has_label = stem is not None and label_stem.replace("{stem}", stem) in stems
            return has_label or match_stem(label_stem, path) is None

        images = [path for path in paths if is_image(path)]
    return images, [path for path in paths if path not in set(images)]
