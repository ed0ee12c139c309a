import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from regseg_jax.data import augment
from regseg_jax.data.augment import AugmentConfig, Placement
from regseg_jax.data.classes import CAMVID, IGNORE_LABEL
from regseg_jax.data.sources.source import load_camvid

CROP = (48, 64)
# Resized size and start of the crop: every mixture of cropping, padding, down- and upscaling of
# an image of 60 x 80.
PLACEMENTS = {
    "same size, cropped": ((60, 80), (5, 9)),
    "downscaled, fits exactly": ((48, 64), (0, 0)),
    "downscaled, padded all round": ((21, 28), (-13, -20)),
    "downscaled, padded at the end": ((30, 40), (0, 0)),
    "downscaled, padded at the start": ((30, 40), (-18, -24)),
    "cropped in rows, padded in columns": ((55, 37), (4, -11)),
    "padded in rows, cropped in columns": ((33, 99), (-7, 35)),
    "upscaled by 1.3, cropped": ((78, 104), (30, 40)),
    "upscaled by 3.05, cropped": ((183, 244), (77, 101)),
    "upscaled, upper left corner": ((120, 160), (0, 0)),
    "upscaled, lower right corner": ((120, 160), (72, 96)),
}


def _generated_examples() -> tuple[np.ndarray, np.ndarray]:
    """Noise, on which half a pixel of displacement shows, and labels in patches."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 60, 80, 3), np.uint8)
    patches = rng.integers(0, 12, (2, 20, 20), np.uint8)
    labels = patches.repeat(3, axis=1).repeat(4, axis=2)
    return images, np.where(labels == 11, np.uint8(IGNORE_LABEL), labels)


def _with_pillow(image, label, size, start, flip, crop_size):
    """The same placement by Pillow: resize the whole image, paste on a canvas, flip."""
    resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    resized_label = Image.fromarray(label).resize(size[::-1], Image.Resampling.NEAREST)
    canvas = np.empty((*crop_size, 3))
    canvas[:] = 255 * np.array([0.485, 0.456, 0.406])
    label_canvas = np.full(crop_size, IGNORE_LABEL)
    target, source = [], []
    for side, first, length in zip(size, start, crop_size, strict=True):
        target.append(slice(max(-first, 0), min(side - first, length)))
        source.append(slice(max(first, 0), min(side, first + length)))
    canvas[tuple(target)] = np.asarray(resized)[tuple(source)]
    label_canvas[tuple(target)] = np.asarray(resized_label)[tuple(source)]
    return (canvas[:, ::-1], label_canvas[:, ::-1]) if flip else (canvas, label_canvas)


_apply = jax.jit(augment.apply_placement, static_argnums=3, static_argnames="max_shrink")


def _assert_as_pillow(image, label, size, start, flip, crop_size) -> float:
    """Returns the fraction of equal labels."""
    placement = Placement(jnp.array(size), jnp.array(start), jnp.array(flip))
    pixels, labels = _apply(image, label, placement, crop_size, max_shrink=4.1)
    assert pixels.shape == (*crop_size, 3)
    assert pixels.dtype == jnp.float32
    assert labels.shape == crop_size
    assert labels.dtype == jnp.int32
    expected_pixels, expected_labels = _with_pillow(image, label, size, start, flip, crop_size)
    difference = np.abs(np.asarray(pixels) - expected_pixels)
    # Pillow rounds to whole grey levels, after each of the two directions.
    assert difference.mean() < 0.5
    assert difference.max() < 1.5
    equal = np.asarray(labels) == expected_labels
    if flip:
        equal = equal[:, ::-1]
    # Where a pixel's centre is on the border of two source pixels, Pillow's sums of rounded
    # steps fall on either side.
    row_ties, column_ties = (
        (2 * (first + np.arange(length)) + 1) * side % (2 * resized) == 0
        for first, length, side, resized in zip(start, crop_size, label.shape, size, strict=True)
    )
    assert equal[~row_ties][:, ~column_ties].all()
    return equal.mean()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("case", PLACEMENTS)
def test_placement_as_pillow_on_generated_images(case, flip):
    images, labels = _generated_examples()
    for image, label in zip(images, labels, strict=True):
        _assert_as_pillow(image, label, *PLACEMENTS[case], flip, CROP)


def test_drawn_placements_as_pillow_on_real_images(camvid_dir):
    source = load_camvid(camvid_dir, "val", CAMVID)
    config = AugmentConfig(crop_size=(180, 240), min_shorter_side=90, max_shorter_side=360)
    for seed in range(8):
        example = source[12 * seed]
        placement = augment.draw_placement(jax.random.key(seed), (360, 480), config)
        size, start = (tuple(np.asarray(x).tolist()) for x in placement[:2])
        flip = bool(placement.flip)
        share_equal = _assert_as_pillow(
            example["image"], example["label"], size, start, flip, (180, 240)
        )
        assert share_equal >= 0.99


def test_evaluation_resize_as_pillow():
    images, _ = _generated_examples()
    for size in ((45, 40), (90, 133)):
        result = np.asarray(augment.resize_and_normalize(jnp.asarray(images), size))
        pixels = (result * augment.STD + augment.MEAN) * 255
        expected = [
            np.asarray(Image.fromarray(x).resize(size[::-1], Image.Resampling.BILINEAR))
            for x in images
        ]
        assert np.abs(pixels - np.stack(expected)).max() < 2


def test_evaluation_leaves_the_images_size_alone():
    images, _ = _generated_examples()
    result = augment.resize_and_normalize(jnp.asarray(images), (60, 80))
    expected = (images / 255 - np.array(augment.MEAN)) / np.array(augment.STD)
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("case", PLACEMENTS)
def test_padding_of_the_host_does_not_show(case):
    """An image in the corner of a larger array gives what it gives alone."""
    images, labels = _generated_examples()
    size, start = PLACEMENTS[case]
    placement = Placement(jnp.array(size), jnp.array(start), jnp.array(False))
    alone, alone_label = _apply(images[0], labels[0], placement, CROP, max_shrink=3)
    padded = np.full((71, 97, 3), 255, np.uint8)
    padded_label = np.full((71, 97), 3, np.uint8)
    padded[:60, :80], padded_label[:60, :80] = images[0], labels[0]
    result, result_label = _apply(
        padded, padded_label, placement, CROP, jnp.array(labels[0].shape), max_shrink=3
    )
    np.testing.assert_allclose(result, alone, atol=0.01)
    np.testing.assert_array_equal(result_label, alone_label)


@functools.cache
def _draw(config: AugmentConfig, image_size: tuple[int, int]) -> Placement:
    """4000 draws."""
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.vmap(lambda key: augment.draw_placement(key, image_size, config))
    return jax.tree.map(np.asarray, jax.jit(draw)(keys))


SCALED = AugmentConfig(CROP, min_shorter_side=30, max_shorter_side=39, flip_probability=0.3)
PADDED = AugmentConfig((48, 48), 45, 45, flip_probability=0.0)
CROPPED = AugmentConfig((48, 51), 51, 51, flip_probability=1.0)


@pytest.mark.parametrize("image_size", [(60, 80), (80, 60)])
def test_scales_are_uniform_integers_with_both_ends_and_keep_the_aspect(image_size):
    placement = _draw(SCALED, image_size)
    shorter_axis = int(np.argmin(image_size))
    shorter = placement.size[:, shorter_axis]
    sides, counts = np.unique(shorter, return_counts=True)
    assert sides.tolist() == list(range(30, 40))
    assert counts.min() > 320  # 400 each on average, standard deviation 19
    assert counts.max() < 480
    np.testing.assert_array_equal(placement.size[:, 1 - shorter_axis], shorter * 80 // 60)


@pytest.mark.parametrize("image_size", [(60, 80), (60, 61), (60, 119), (7, 300), (300, 7)])
@pytest.mark.parametrize("shorter", [1, 2, 7, 59, 60, 200])
def test_no_side_shrinks_more_than_the_config_lets_it(image_size, shorter):
    config = AugmentConfig(min_shorter_side=shorter, max_shorter_side=shorter)
    size = augment.draw_placement(jax.random.key(0), image_size, config).size
    shrink = np.array(image_size) / np.array(size)
    assert shrink.max() <= augment.find_max_shrink(image_size, config)


def test_padding_is_uniform_with_both_ends():
    start = _draw(PADDED, (100, 100)).start
    pairs, counts = np.unique(start, axis=0, return_counts=True)
    assert pairs.tolist() == [[row, column] for row in range(-3, 1) for column in range(-3, 1)]
    assert (
        counts.min() > 180
    )  # 250 each on average, standard deviation 15: rows and columns independent
    assert counts.max() < 320


def test_crop_is_uniform_with_both_ends():
    start = _draw(CROPPED, (100, 100)).start
    rows, counts = np.unique(start[:, 0], return_counts=True)
    assert rows.tolist() == [0, 1, 2, 3]
    assert counts.min() > 880  # 1000 each on average, standard deviation 27
    assert counts.max() < 1120
    assert not start[:, 1].any()  # as wide as the crop: one position


def test_crops_hold_the_centroid_and_stay_inside():
    """Images of 100 x 200, scaled to 150 x 300; crops of 48 x 64."""
    config = AugmentConfig(CROP, 150, 150)
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.jit(
        jax.vmap(lambda k, c: augment.draw_placement(k, (100, 200), config, c), in_axes=(0, None))
    )
    start = np.asarray(draw(keys, jnp.array((50, 100))).start)
    for axis, (center, length) in enumerate(((75, 48), (150, 64))):
        positions, counts = np.unique(center - start[:, axis], return_counts=True)
        assert positions.tolist() == list(range(length))  # at each place of the crop
        assert counts.max() < 2 * 4000 / length  # uniformly
    # Near a border the crop is moved inside: most crops around the corner are at the corner.
    corner = np.asarray(draw(keys, jnp.array((0, 199))).start)
    assert (corner[:, 0] == 0).all()
    assert corner[:, 1].max() == 300 - 64
    assert corner[:, 1].min() > 298 - 64
    # None is as without centroids.
    anywhere = draw(keys, jnp.array((-1, -1))).start
    expected = jax.jit(jax.vmap(lambda k: augment.draw_placement(k, (100, 200), config)))(keys)
    np.testing.assert_array_equal(anywhere, expected.start)


def test_a_centroid_does_not_move_an_image_smaller_than_the_crop():
    rng, size = jax.random.key(2), (100, 100)
    placement = augment.draw_placement(rng, size, PADDED, jnp.array((99, 0)))
    assert placement.start.tolist() == augment.draw_placement(rng, size, PADDED).start.tolist()


def test_flip_probability():
    assert abs(_draw(SCALED, (60, 80)).flip.mean() - 0.3) < 0.03
    assert not _draw(PADDED, (100, 100)).flip.any()
    assert _draw(CROPPED, (100, 100)).flip.all()


@pytest.fixture(scope="module")
def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (8, 60, 80, 3), np.uint8)
    labels = rng.integers(0, 11, (8, 60, 80), np.uint8)
    return images, labels


AUGMENT = jax.jit(functools.partial(augment.augment, config=AugmentConfig(CROP, 30, 120)))


def test_batch_is_a_pure_function_of_the_key(batch):
    pixels, labels = AUGMENT(*batch, jax.random.key(3))
    assert pixels.shape == (8, *CROP, 3)
    assert labels.shape == (8, *CROP)
    again = AUGMENT(*batch, jax.random.key(3))
    np.testing.assert_array_equal(pixels, again[0])
    np.testing.assert_array_equal(labels, again[1])
    other = AUGMENT(*batch, jax.random.key(4))
    assert all((labels[i] != other[1][i]).mean() > 0.1 for i in range(8))


def test_true_sizes_and_centroids_of_a_batch(batch):
    """Images of two sizes in one batch, and crops that hold the one labelled pixel."""
    images, _ = batch
    size = np.resize(((60, 80), (40, 30)), (8, 2)).astype(np.int32)
    centroid = size // 2
    labels = np.full((8, 60, 80), IGNORE_LABEL, np.uint8)
    labels[np.arange(8), centroid[:, 0], centroid[:, 1]] = 1
    labels[1::2, 40:] = 2  # padding, which must not show
    config = AugmentConfig((20, 20), 40, 60)
    _, result = jax.jit(functools.partial(augment.augment, config=config))(
        images, labels, jax.random.key(0), size=size, centroid=centroid
    )
    result = np.asarray(result)
    assert (result != 2).all()
    assert (result == 1).any(axis=(1, 2))[1::2].all()  # upscaled: the pixel is never skipped


def test_every_image_of_a_batch_has_its_own_draw(batch):
    images, labels = (np.repeat(x[:1], 8, axis=0) for x in batch)
    _, labels = AUGMENT(images, labels, jax.random.key(0))
    assert len({np.asarray(label).tobytes() for label in labels}) == 8


def test_same_batch_on_eight_devices(batch):
    # As users run it: less optimised (tests/conftest.py), one device rounds otherwise than eight.
    optimized = jax.jit(
        functools.partial(augment.augment, config=AugmentConfig(CROP, 30, 120)),
        compiler_options={
            "xla_backend_optimization_level": 3,
            "xla_llvm_disable_expensive_passes": False,
        },
    )
    expected = optimized(*batch, jax.random.key(5))
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    pixels, labels = optimized(*jax.device_put(batch, sharding), jax.random.key(5))
    np.testing.assert_array_equal(labels, expected[1])
    np.testing.assert_allclose(pixels, expected[0], atol=1e-5)
    assert len(pixels.sharding.device_set) == 8


def test_normalization():
    white, mean = np.full((1, 1, 3), 255), 255 * np.array([[augment.MEAN]])
    expected = (1 - np.array(augment.MEAN)) / augment.STD
    np.testing.assert_allclose(augment.normalize(white)[0, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(augment.normalize(mean), 0, atol=1e-6)


def test_bad_ranges_are_named():
    with pytest.raises(ValueError, match=r"max_shorter_side is 400; set .* at least 500"):
        AugmentConfig(CROP, 500, 400)
    with pytest.raises(ValueError, match=r"config\.augment\.min_shorter_side is 0; set"):
        AugmentConfig(CROP, 0, 400)
    with pytest.raises(ValueError, match=r"config\.augment\.crop_size is \(0, 64\)"):
        AugmentConfig((0, 64), 300, 400)
