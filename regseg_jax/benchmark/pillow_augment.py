"""The recipe's augmentation on the host, in Pillow, as the author's code has it.

The benchmark of the input times it next to what the host does here. It is the same function of the
same crop parameters as `data.augment`, see tests/benchmark/test_pillow_augment.py.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from regseg_jax.data.augment import MEAN, STD, AugmentConfig
from regseg_jax.data.classes import IGNORE_LABEL
from regseg_jax.data.rand_augment import MAX_CHANGE, MAX_DEGREES, OPERATIONS

_FILL = tuple(round(255 * mean) for mean in MEAN)
_ENHANCERS = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}


class Crop(NamedTuple):
    """The random samples of one image.

    Attributes:
      size: height and width that the image is resized to.
      start: row and column of the resized image at the crop's top left corner; negative where
        padding comes first.
      flip: whether the crop is then flipped left to right.
      operations: of RandAugment: names and levels, in [-1, 1].
    """

    size: tuple[int, int]
    start: tuple[int, int]
    flip: bool
    operations: tuple[tuple[str, float], ...]


def draw_crop(image_size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator) -> Crop:
    """Draws what `data.augment` draws, from the same distribution; for an image (height, width)."""
    shorter = int(rng.integers(config.min_shorter_side, config.max_shorter_side + 1))
    size = tuple(shorter * side // min(image_size) for side in image_size)
    slack = [side - length for side, length in zip(size, config.crop_size, strict=True)]
    start = tuple(int(rng.integers(min(x, 0), max(x, 0) + 1)) for x in slack)
    names = rng.choice(list(OPERATIONS), config.rand_augment_num_ops, replace=False)
    level = config.rand_augment_magnitude
    operations = tuple((str(name), level * float(rng.choice((-1, 1)))) for name in names)
    return Crop(size, start, bool(rng.random() < config.flip_probability), operations)


def apply_crop(
    image: Image.Image, label: Image.Image, crop: Crop, crop_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Resizes, crops, flips, applies RandAugment, pads and normalises.

    Args:
      image: RGB.
      label: of 8 bits, of the image's size.
      crop: the random samples.
      crop_size: height and width of the result.

    Returns:
      f32[3, h, w] of ImageNet's mean 0 and standard deviation 1, and i64[h, w].
    """
    image = image.resize(crop.size[::-1], Image.Resampling.BILINEAR)
    label = label.resize(crop.size[::-1], Image.Resampling.NEAREST)
    top, left = (max(start, 0) for start in crop.start)
    bottom, right = (
        min(side, start + length)
        for side, start, length in zip(crop.size, crop.start, crop_size, strict=True)
    )
    image, label = (x.crop((left, top, right, bottom)) for x in (image, label))
    row, column = (max(-start, 0) for start in crop.start)
    if crop.flip:
        image, label = ImageOps.mirror(image), ImageOps.mirror(label)
        column = crop_size[1] - column - image.width
    for name, level in crop.operations:
        image, label = _apply_operation(name, level, image, label)
    canvas = Image.new("RGB", crop_size[::-1], _FILL)
    label_canvas = Image.new("L", crop_size[::-1], IGNORE_LABEL)
    canvas.paste(image, (column, row))
    label_canvas.paste(label, (column, row))
    pixels = np.asarray(canvas).transpose(2, 0, 1).astype(np.float32) / 255
    mean, std = (np.array(x, np.float32)[:, None, None] for x in (MEAN, STD))
    return (pixels - mean) / std, np.asarray(label_canvas, np.int64)


def _apply_operation(
    name: str, level: float, image: Image.Image, label: Image.Image
) -> tuple[Image.Image, Image.Image]:
    if name == "auto-contrast":
        return ImageOps.autocontrast(image), label
    if name == "equalize":
        return ImageOps.equalize(image), label
    if name == "rotate":
        angle = level * MAX_DEGREES
        return (
            image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=_FILL),
            label.rotate(angle, Image.Resampling.NEAREST, fillcolor=IGNORE_LABEL),
        )
    return _ENHANCERS[name](image).enhance(1 + MAX_CHANGE * level), label


def load_with_pillow(
    paths: tuple[str, str], config: AugmentConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes and augments one pair of files, see `apply_crop`; labels keep their raw values."""
    with Image.open(paths[0]) as image, Image.open(paths[1]) as label:
        image, label = image.convert("RGB"), label.copy()
    return apply_crop(image, label, draw_crop(image.size[::-1], config, rng), config.crop_size)
