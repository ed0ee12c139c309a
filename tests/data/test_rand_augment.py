import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance, ImageOps

from regseg_jax.data import augment, rand_augment
from regseg_jax.data.augment import AugmentConfig, Placement
from regseg_jax.data.classes import CAMVID, IGNORE_LABEL
from regseg_jax.data.rand_augment import MAX_CHANGE, MAX_DEGREES, OPERATIONS, Box
from regseg_jax.data.sources.source import load_camvid
from regseg_jax.data.synthetic.scenes import SyntheticScenes

MAGNITUDE = 0.2
FILL = (124, 116, 104)  # of whole grey levels, as Pillow needs it

# The same by Pillow: of an image and a level, the magnitude with its sign.
PILLOW = {
    "auto-contrast": lambda image, level: ImageOps.autocontrast(image),
    "equalize": lambda image, level: ImageOps.equalize(image),
    "rotate": lambda image, level: image.rotate(
        level * MAX_DEGREES, Image.Resampling.BILINEAR, fillcolor=FILL
    ),
    "color": lambda image, level: ImageEnhance.Color(image).enhance(1 + MAX_CHANGE * level),
    "contrast": lambda image, level: ImageEnhance.Contrast(image).enhance(1 + MAX_CHANGE * level),
    "brightness": lambda image, level: ImageEnhance.Brightness(image).enhance(
        1 + MAX_CHANGE * level
    ),
    "sharpness": lambda image, level: ImageEnhance.Sharpness(image).enhance(1 + MAX_CHANGE * level),
}


@functools.cache
def _compile(name: str):
    def apply(image, label, box, level):
        crop = rand_augment._Crop(image, label)
        return OPERATIONS[name](crop, box, level, jnp.array(FILL, jnp.float32))

    return jax.jit(apply)


def _apply(name, image, label, level, box=None):
    box = box or ((0, 0), label.shape)
    image, label = image.astype(np.float32), label.astype(np.int32)
    crop = _compile(name)(image, label, Box(*map(jnp.array, box)), level)
    return np.asarray(crop.image), np.asarray(crop.label)


def _assert_as_pillow(name, image, label, level):
    pixels, labels = _apply(name, image, label, level)
    expected = np.asarray(PILLOW[name](Image.fromarray(image), level), np.float32)
    difference = np.abs(pixels - expected)
    assert difference.mean() < 0.05  # asked for are 2 grey levels
    assert (difference <= 1).mean() > 0.9999
    assert (pixels != image).mean() > 0.3  # it does something
    if name == "rotate":
        expected = Image.fromarray(label).rotate(level * MAX_DEGREES, fillcolor=IGNORE_LABEL)
        assert (labels == np.asarray(expected)).mean() > 0.9999  # ties
        assert (labels != label).mean() > 0.02
    else:
        np.testing.assert_array_equal(labels, label)


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """A generated scene of less than full contrast, with noise."""
    example = SyntheticScenes(num_examples=1, height=90, width=130, seed=0)[0]
    noise = np.random.default_rng(0).integers(-9, 10, example["image"].shape)
    return np.clip(example["image"] * 0.8 + 20 + noise, 10, 240).astype(np.uint8), example["label"]


@pytest.mark.parametrize("level", [MAGNITUDE, -MAGNITUDE, 1.0])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_as_pillow_on_a_drawn_image(name, level, drawn):
    _assert_as_pillow(name, *drawn, level)


@pytest.mark.parametrize("level", [MAGNITUDE, -MAGNITUDE])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_as_pillow_on_real_images(name, level, camvid_dir):
    source = load_camvid(camvid_dir, "val", CAMVID)
    for index in (0, 40, 90):
        example = source[index]
        image = example["image"]
        if name == "auto-contrast":  # the real ones have it all
            image = (image * 0.7 + 30).astype(np.uint8)
        _assert_as_pillow(name, image, example["label"], level)


@pytest.mark.parametrize("name", OPERATIONS)
def test_padding_is_neither_read_nor_changed(name, drawn):
    """The image in a box on a crop gives what it gives alone."""
    image, label = drawn
    crop = np.random.default_rng(1).integers(0, 256, (110, 150, 3)).astype(np.uint8)
    crop_label = np.full((110, 150), 3, np.uint8)
    start, size = (7, 15), label.shape
    inside = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
    crop[inside], crop_label[inside] = image, label
    expected = _apply(name, image, label, MAGNITUDE)
    result = _apply(name, crop, crop_label, MAGNITUDE, (start, size))
    for actual, alone in zip(result, expected, strict=True):
        # Positions further from the origin round differently: a grey level here and there.
        assert (np.abs(actual[inside] - alone) > 0).mean() < 1e-3
        assert np.abs(actual[inside] - alone).max() <= (1 if actual.ndim == 3 else 255)


@pytest.mark.parametrize("name", ["auto-contrast", "equalize"])
def test_an_image_of_one_colour_stays(name):
    image, label = np.full((8, 9, 3), 77, np.uint8), np.zeros((8, 9), np.uint8)
    np.testing.assert_array_equal(_apply(name, image, label, MAGNITUDE)[0], image)


def test_both_histograms_count():
    rng = np.random.default_rng(0)
    levels, inside = rng.integers(0, 256, (70, 80)), rng.random((70, 80)) < 0.7
    expected = np.bincount(levels[inside], minlength=256)
    for count in (rand_augment.count_by_adding, rand_augment.count_by_multiplying):
        np.testing.assert_array_equal(jax.jit(count)(levels, inside), expected)


CONFIG = AugmentConfig((90, 130), 90, 90, rand_augment_num_ops=2)
AUGMENT = jax.jit(functools.partial(augment.augment, config=CONFIG))


def _two_operations(image, label, box, key):
    return rand_augment.rand_augment(
        image, label, box, key, num_ops=2, magnitude=MAGNITUDE, fill=FILL
    )


def test_two_distinct_operations_of_either_sign(drawn):
    """Every drawn image is that of one ordered pair of different operations, all of them seen."""
    image, label = drawn[0][:24, :32], drawn[1][:24, :32]
    box = Box(jnp.zeros(2, int), jnp.array(label.shape))
    keys = jax.random.split(jax.random.key(0), 600)
    run = jax.jit(jax.vmap(_two_operations, in_axes=(None, None, None, 0)))
    images = np.asarray(run(image.astype(np.float32), label.astype(np.int32), box, keys)[0])

    def chain(names, signs):
        result = image, label
        for name, sign in zip(names, signs, strict=True):
            result = _apply(name, *result, sign * MAGNITUDE)
        return result[0].tobytes()

    signs = [(a, b) for a in (-1, 1) for b in (-1, 1)]
    pairs = {(a, b): {chain((a, b), s) for s in signs} for a in OPERATIONS for b in OPERATIONS}
    distinct = set().union(*(value for (a, b), value in pairs.items() if a != b))
    seen = {drawn_image.tobytes() for drawn_image in images}
    # A vmapped rotation may round single pixels otherwise: those are not compared.
    unrotated = [key for key in pairs if "rotate" not in key and key[0] != key[1]]
    assert all(pairs[key] & seen for key in unrotated)
    repeated = set().union(*(pairs[a, a] for a in ("color", "contrast", "brightness", "sharpness")))
    assert not (repeated - distinct) & seen


def test_operations_follow_each_other_as_drawn(drawn):
    """Also equalization, which is computed at one place for two operations."""
    image, label = drawn[0][:24, :32], drawn[1][:24, :32]
    box = Box(jnp.zeros(2, int), jnp.array(label.shape))
    keys = jax.random.split(jax.random.key(0), 40)
    run = functools.partial(rand_augment.rand_augment, num_ops=3, magnitude=MAGNITUDE, fill=FILL)
    run = jax.jit(jax.vmap(run, in_axes=(None, None, None, 0)))
    images = np.asarray(run(image.astype(np.float32), label.astype(np.int32), box, keys)[0])
    places_of_equalization = set()
    for key, actual in zip(keys, images, strict=True):
        op_rng, sign_rng = jax.random.split(key)
        drawn_ops = np.asarray(jax.random.permutation(op_rng, len(OPERATIONS)))[:3]
        names = [list(OPERATIONS)[op] for op in drawn_ops]
        if "rotate" in names:  # may round single pixels otherwise
            continue
        result = image, label
        for name, sign in zip(names, jax.random.rademacher(sign_rng, (3,)), strict=True):
            result = _apply(name, *result, float(sign) * MAGNITUDE)
        np.testing.assert_array_equal(actual, result[0])
        places_of_equalization |= {names.index("equalize")} if "equalize" in names else set()
    assert places_of_equalization == {0, 1, 2}


def test_a_batch_is_a_pure_function_of_the_key_on_any_number_of_devices(drawn):
    images, labels = (np.repeat(x[None], 8, axis=0) for x in drawn)
    expected = AUGMENT(images, labels, jax.random.key(3))
    assert len({np.asarray(image).tobytes() for image in expected[0]}) >= 6  # draws may meet
    again = AUGMENT(images, labels, jax.random.key(3))
    other = AUGMENT(images, labels, jax.random.key(4))
    np.testing.assert_array_equal(again[0], expected[0])
    assert not np.array_equal(other[0], expected[0])
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    sharded = AUGMENT(*jax.device_put((images, labels), sharding), jax.random.key(3))
    np.testing.assert_array_equal(sharded[1], expected[1])
    np.testing.assert_allclose(sharded[0], expected[0], atol=0.02)  # a grey level, normalised
    assert len(sharded[0].sharding.device_set) == 8


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("size", "start"), [((21, 28), (-13, -20)), ((60, 30), (5, -11)), ((90, 120), (3, 9))]
)
def test_the_box_is_where_the_image_lies(size, start, flip):
    crop_size = (48, 64)
    placement = Placement(jnp.array(size), jnp.array(start), jnp.array(flip))
    zeros = np.zeros((60, 80), np.uint8)
    _, labels = augment.apply_placement(
        np.zeros((60, 80, 3), np.uint8), zeros, placement, crop_size, max_shrink=3
    )
    inside = augment.find_box(placement, crop_size).contains(crop_size)
    np.testing.assert_array_equal(inside, labels != IGNORE_LABEL)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rand_augment_num_ops": 8}, r"rand_augment_num_ops is 8; set 0 for none, or up to 7"),
        ({"rand_augment_num_ops": -1}, r"rand_augment_num_ops is -1"),
        ({"rand_augment_magnitude": 1.5}, r"rand_augment_magnitude is 1\.5; set a fraction"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig((48, 64), 30, 120, **values)
