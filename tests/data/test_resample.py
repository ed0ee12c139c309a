import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from regseg_jax.data import resample as resample_module
from regseg_jax.data.resample import resample

IMAGE = np.random.default_rng(0).integers(0, 256, (30, 44, 3), np.uint8)


def _resample(size, start, crop_size, image=IMAGE):
    arrays = image, jnp.array(size), jnp.array(start), crop_size
    return resample(*arrays, image_size=jnp.array(IMAGE.shape[:2]), max_shrink=3)


@pytest.fixture(params=["pixels are read", "products"])
def form(request, monkeypatch):
    """Each way, the second as for images that shrink to a fraction."""
    if request.param == "products":
        monkeypatch.setattr(resample_module, "_MAX_TAPS", 1)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("size", [(30, 44), (10, 15), (31, 20), (90, 130)])
def test_it_resizes_as_pillow(size):
    expected = Image.fromarray(IMAGE).resize(size[::-1], Image.Resampling.BILINEAR)
    difference = np.abs(_resample(size, (0, 0), size) - np.asarray(expected, np.float32))
    assert difference.max() < 1.5  # Pillow rounds after each direction
    assert difference.mean() < 0.5


@pytest.mark.usefixtures("form")
def test_a_crop_is_part_of_the_whole_and_finite_outside():
    whole = _resample((20, 33), (0, 0), (20, 33))
    crop = _resample((20, 33), (-3, 7), (18, 40))
    np.testing.assert_allclose(crop[3:, :26], whole[:15, 7:], rtol=1e-5)
    assert np.isfinite(crop).all()


@pytest.mark.usefixtures("form")
def test_what_is_around_the_image_does_not_show():
    padded = np.pad(IMAGE, ((0, 5), (0, 9), (0, 0)), constant_values=255)
    arguments = (15, 50), (0, 0), (15, 50)
    np.testing.assert_allclose(_resample(*arguments, padded), _resample(*arguments), rtol=1e-5)


def test_floats_may_be_resized_too():
    expected = _resample((12, 40), (0, 0), (12, 40))
    actual = _resample((12, 40), (0, 0), (12, 40), IMAGE.astype(np.float32))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize(("platform", "products"), [("cpu", 0), ("cuda", 0), ("tpu", 2)])
def test_only_tpus_multiply_by_matrices(platform, products):
    function = jax.jit(lambda image: _resample((12, 40), (0, 0), (12, 40), image))
    module = jax.export.export(function, platforms=[platform])(IMAGE).mlir_module()
    assert len(re.findall("stablehlo.dot_general", module)) == products
