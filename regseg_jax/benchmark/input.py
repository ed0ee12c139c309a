"""Times the host's work for an image of training: here, from the cache, and as the author does it.

python -m regseg_jax.benchmark.input --config=configs/cityscapes.py --config.data.data_dir=DATA

The author's way does all of augmentation on the host, in Pillow: decode, resize, crop, flip,
RandAugment, pad, and normalise in float32. Here the host only decodes, or reads what was decoded
once. All are timed in one thread of one process, in seconds of CPU time, so that a busy machine
does not change the figures: images a CPU second are images a second and core.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable

import numpy as np
from absl import flags
from ml_collections import config_flags
from PIL import Image, ImageEnhance, ImageOps
from tqdm import tqdm

from regseg_jax.config import parse_config
from regseg_jax.data.augment import MEAN, STD, AugmentConfig
from regseg_jax.data.cache import load_cached
from regseg_jax.data.classes import IGNORE_LABEL
from regseg_jax.data.sources.source import FolderSource
from regseg_jax.reports.tables import format_table
from regseg_jax.runs.parts import create_dataset
from regseg_jax.runtime.command import run_command

_MAGNITUDE = 0.2  # of RandAugment in the paper's recipe


def load_with_pillow(
    paths: tuple[str, str], config: AugmentConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes and augments one pair of files on the host, with Pillow as the author has it.

    Returns:
      f32[3, h, w], normalised, and i64[h, w] of raw label values.
    """
    with Image.open(paths[0]) as image, Image.open(paths[1]) as label:
        image, label = image.convert("RGB"), label.copy()
    shorter = int(rng.integers(config.min_shorter_side, config.max_shorter_side + 1))
    size = tuple(shorter * side // min(image.size) for side in image.size)
    image = image.resize(size, Image.Resampling.BILINEAR)
    label = label.resize(size, Image.Resampling.NEAREST)
    crop = tuple(min(side, want) for side, want in zip(size, config.crop_size[::-1], strict=True))
    left, top = (int(rng.integers(0, side - c + 1)) for side, c in zip(size, crop, strict=True))
    box = (left, top, left + crop[0], top + crop[1])
    image, label = image.crop(box), label.crop(box)
    if rng.random() < config.flip_probability:
        image, label = ImageOps.mirror(image), ImageOps.mirror(label)
    for operation in rng.choice(7, 2, replace=False):
        image, label = _apply_operation(int(operation), image, label, rng)
    height, width = config.crop_size
    canvas = Image.new("RGB", (width, height), tuple(round(255 * mean) for mean in MEAN))
    label_canvas = Image.new("L", (width, height), IGNORE_LABEL)
    corner = tuple(
        int(rng.integers(0, want - c + 1)) for want, c in zip((width, height), crop, strict=True)
    )
    canvas.paste(image, corner)
    label_canvas.paste(label, corner)
    pixels = np.asarray(canvas).transpose(2, 0, 1).astype(np.float32) / 255
    mean, std = (np.array(x, np.float32)[:, None, None] for x in (MEAN, STD))
    return (pixels - mean) / std, np.asarray(label_canvas, np.int64)


def _apply_operation(
    operation: int, image: Image.Image, label: Image.Image, rng: np.random.Generator
) -> tuple[Image.Image, Image.Image]:
    """One of RandAugment's seven."""
    sign = float(rng.choice((-1, 1)))
    if operation == 0:
        return ImageOps.autocontrast(image), label
    if operation == 1:
        return ImageOps.equalize(image), label
    if operation == 2:
        angle, fill = sign * 30 * _MAGNITUDE, tuple(round(255 * mean) for mean in MEAN)
        return (
            image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=fill),
            label.rotate(angle, Image.Resampling.NEAREST, fillcolor=IGNORE_LABEL),
        )
    enhancers = ("Color", "Contrast", "Brightness", "Sharpness")
    enhance = getattr(ImageEnhance, enhancers[operation - 3])
    return enhance(image).enhance(1 + sign * 0.9 * _MAGNITUDE), label


def measure(work: Callable[[int], object], count: int, description: str) -> float:
    """Calls of `work(i)` a second of CPU time, after one that is not counted."""
    work(0)
    start = time.process_time()
    for i in tqdm(range(count), description, unit="image", leave=False, disable=None):
        work(i)
    return count / (time.process_time() - start)


def compare(source: FolderSource, config: AugmentConfig, num_images: int) -> dict[str, float]:
    """Images a CPU second by each way; the cache is made in a temporary folder."""
    rng = np.random.default_rng(0)
    sizes = source.image_sizes and source.image_sizes[:num_images]
    subset = dataclasses.replace(source, pairs=source.pairs[:num_images], image_sizes=sizes)
    with tempfile.TemporaryDirectory() as folder:
        cached = load_cached(folder, "benchmark", subset)
        ways = {
            "the author's way, in Pillow": lambda i: load_with_pillow(subset.pairs[i], config, rng),
            "decoding alone, as here": subset.__getitem__,
            "from the cache, as here": cached.__getitem__,
        }
        return {
            name: measure(lambda i, work=work: work(i % len(subset)), num_images, name)
            for name, work in ways.items()
        }


def main(argv: list[str]) -> None:
    """Prints the table."""
    values = flags.FLAGS
    config = parse_config(values.config)
    source = create_dataset(config).create_source(config.data.train_split)
    if not isinstance(source, FolderSource):
        raise ValueError(
            f"config.data.source is {config.data.source!r}, which is no folder of image files; use "
            "camvid, cityscapes or folder"
        )
    rates = compare(source, config.augment, values.num_images)
    base = next(iter(rates.values()))
    rows = [
        (name, f"{rate:.1f}", f"{1000 / rate:.1f}", f"{rate / base:.1f}")
        for name, rate in rates.items()
    ]
    print(format_table(("", "images/s and core", "ms an image", "times"), rows))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The recipe, a file of configs/.")
    flags.DEFINE_integer("num_images", 40, "Images that each way is timed on.", lower_bound=1)
    flags.mark_flags_as_required(["config"])
    run_command(main, "regseg_jax.benchmark.input")
