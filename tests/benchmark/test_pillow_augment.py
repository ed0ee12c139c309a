import functools

import jax
import numpy as np
import pytest
from cityscapes_tree import write_cityscapes
from PIL import Image

from regseg_jax.benchmark.pillow_augment import Crop, apply_crop, draw_crop, load_with_pillow
from regseg_jax.data.augment import MEAN, STD, AugmentConfig, augment, draw_placement
from regseg_jax.data.classes import CITYSCAPES
from regseg_jax.data.rand_augment import OPERATIONS
from regseg_jax.data.sources.cityscapes import load_cityscapes


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    write_cityscapes(root, num_examples={"train": 3}, height=48, width=96)
    return load_cityscapes(root, "train", CITYSCAPES)


def draw_as_augment(rng, image_size, config) -> Crop:
    """The random samples that `augment` takes from rng for a batch of one image."""
    key, ops_key = jax.random.split(jax.random.split(rng, 1)[0])
    placement = draw_placement(key, image_size, config)
    op_key, sign_key = jax.random.split(ops_key)
    number = config.rand_augment_num_ops
    chosen = np.asarray(jax.random.permutation(op_key, len(OPERATIONS))[:number])
    signs = np.asarray(jax.random.rademacher(sign_key, (number,), np.float32))
    levels = (float(sign) * config.rand_augment_magnitude for sign in signs)
    operations = tuple(zip((list(OPERATIONS)[i] for i in chosen), levels, strict=True))
    size, start = (tuple(np.asarray(x).tolist()) for x in placement[:2])
    return Crop(size, start, bool(placement.flip), operations)


def test_equals_the_real_augmentation_on_equal_crop_parameters():
    """Pixel by pixel, over smaller and larger scales, flips, and every operation."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    image = noise.resize((80, 60), Image.Resampling.BICUBIC)
    label = Image.fromarray(rng.integers(0, 19, (12, 16), np.uint8)).resize(image.size, 0)
    config = AugmentConfig((48, 64), 30, 120, rand_augment_num_ops=1)
    real = jax.jit(functools.partial(augment, config=config))
    seen = set()
    for seed in range(30):
        key = jax.random.key(seed)
        crop = draw_as_augment(key, (60, 80), config)
        seen.update({crop.operations[0][0], crop.flip, crop.start[0] < 0})
        pixels, labels = real(np.asarray(image)[None], np.asarray(label)[None], key)
        expected, expected_labels = apply_crop(image, label, crop, config.crop_size)
        std = np.array(STD)[:, None, None]
        levels = 255 * std * (np.asarray(pixels[0]).transpose(2, 0, 1) - expected)
        # Resizing rounds a level up or down, which the operation then widens.
        assert np.abs(levels).mean() < 0.5, (seed, crop)
        assert np.abs(levels).max() < 4, (seed, crop)
        # Whole rows and columns differ where a pixel's centre is on a border, see
        # tests/data/test_augment.py.
        assert (np.asarray(labels[0]) == expected_labels).mean() > 0.9, (seed, crop)
    assert seen == {*OPERATIONS, True, False}


def test_drawn_crops_lie_inside_or_are_padded():
    config = AugmentConfig((40, 50), 30, 90, rand_augment_num_ops=2)
    rng = np.random.default_rng(0)
    crops = [draw_crop((48, 96), config, rng) for _ in range(200)]
    for crop in crops:
        for side, start, length in zip(crop.size, crop.start, config.crop_size, strict=True):
            assert min(0, side - length) <= start <= max(0, side - length)
        assert len({name for name, _ in crop.operations}) == 2
        assert {abs(level) for _, level in crop.operations} == {0.2}
    assert {crop.flip for crop in crops} == {True, False}


@pytest.mark.parametrize("shorter_side", [30, 90])
def test_a_file_becomes_a_normalised_crop(source, shorter_side):
    config = AugmentConfig((40, 50), shorter_side, shorter_side, rand_augment_num_ops=2)
    rng = np.random.default_rng(0)
    lowest = -max(mean / std for mean, std in zip(MEAN, STD, strict=True))
    for _ in range(5):
        image, label = load_with_pillow(source.pairs[0], config, rng)
        assert image.shape == (3, 40, 50)
        assert image.dtype == np.float32
        assert image.min() >= lowest - 1e-5
        assert label.shape == (40, 50)
        assert set(np.unique(label)) <= {*range(34), 255}
        assert shorter_side > 30 or (label == 255).any()  # padded where smaller
