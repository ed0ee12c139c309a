import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from regseg_jax.ops import upsampled_loss
from regseg_jax.ops.resize import upsample_bilinear
from regseg_jax.ops.upsampled_loss import upsampled_argmax, upsampled_pixel_losses

# The logits' size, then the labels'. The last ones are not multiples and take the ordinary way.
SIZES = {
    "4": ((3, 5), (12, 20)),
    "8": ((3, 2), (24, 16)),
    "one row": ((1, 4), (4, 16)),
    "3 and 1": ((4, 3), (12, 3)),
    "odd": ((3, 5), (11, 18)),
}


def _inputs(name, dtype=np.float64):
    (height, width), size = SIZES[name]
    rng = np.random.default_rng(0)
    logits = 5 * rng.standard_normal((2, height, width, 6))
    labels = rng.integers(0, 7, (2, *size), dtype=np.int32)
    return jnp.asarray(logits, dtype), np.where(labels == 6, 255, labels)


def _upsample_and_compute(logits, labels):
    upsampled = upsample_bilinear(logits, labels.shape[1:3])
    losses = optax.softmax_cross_entropy_with_integer_labels(upsampled, labels % 255)
    return jnp.where(labels == 255, 0, losses)


def _value_and_gradient(compute_losses):
    """Of (logits, labels, the losses' cotangents)."""

    @jax.jit
    def compute(logits, labels, dlosses):
        losses, vjp = jax.vjp(lambda logits: compute_losses(logits, labels), logits)
        return losses, vjp(dlosses)[0]

    return compute


@pytest.fixture(params=["_sum_by_strips", "_sum_at_once"])
def form(request, monkeypatch):
    """Each form on this platform, whose own is the first."""
    monkeypatch.setattr(upsampled_loss, "_sum_by_strips", getattr(upsampled_loss, request.param))


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("name", SIZES)
def test_losses_and_gradient_equal_those_of_the_upsampled_logits(name):
    with jax.enable_x64(True):
        logits, labels = _inputs(name)
        inputs = logits, labels, np.cos(np.arange(labels.size)).reshape(labels.shape)
        losses, gradient = _value_and_gradient(upsampled_pixel_losses)(*inputs)
        expected, expected_gradient = _value_and_gradient(_upsample_and_compute)(*inputs)
    np.testing.assert_allclose(losses, expected, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12, atol=1e-13)
    assert (np.asarray(losses)[labels == 255] == 0).all()


@pytest.mark.usefixtures("form")
def test_half_precision_logits_are_interpolated_in_float32():
    logits, labels = _inputs("4", jnp.bfloat16)
    inputs = labels, np.ones(labels.shape, np.float32)
    losses, gradient = _value_and_gradient(upsampled_pixel_losses)(logits, *inputs)
    wide = logits.astype(jnp.float32)
    expected, expected_gradient = _value_and_gradient(_upsample_and_compute)(wide, *inputs)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(gradient.astype(np.float32), expected_gradient, rtol=0.01, atol=0.01)


def test_products_are_of_the_precision_of_the_logits():
    logits, labels = _inputs("4", jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda logits: upsampled_pixel_losses(logits, labels).sum()))
    module = jax.export.export(gradient, platforms=["cuda"])(logits).mlir_module()
    operands = re.findall(r"dot_general .*: \(tensor<[\dx]+x(\w+)>, tensor<[\dx]+x(\w+)>", module)
    assert operands == 4 * [("bf16", "bf16")]  # forwards, and of three neighbouring rows


@pytest.mark.usefixtures("form")
def test_far_logits_do_not_overflow():
    labels = np.zeros((1, 8, 4), np.int32)
    logits = jnp.zeros((1, 2, 1, 3)).at[0, 0, 0, 0].set(-3e4).at[0, 1, 0, 1].set(3e4)
    losses = upsampled_pixel_losses(logits, labels)
    np.testing.assert_allclose(losses, _upsample_and_compute(logits, labels), rtol=1e-6)


@pytest.mark.parametrize("form", ["_classify_at_once", "_classify_by_strips"])
@pytest.mark.parametrize("name", SIZES)
def test_classes_equal_those_of_the_upsampled_logits(name, form, monkeypatch):
    monkeypatch.setattr(upsampled_loss, "_classify_at_once", getattr(upsampled_loss, form))
    logits, labels = _inputs(name, np.float32)
    classes = jax.jit(lambda x: upsampled_argmax(x, labels.shape[1:3]))(logits)
    assert classes.dtype == jnp.uint8
    expected = upsample_bilinear(logits, labels.shape[1:3]).argmax(-1)
    np.testing.assert_array_equal(classes, expected)


def test_the_classes_need_no_upsampled_logits():
    logits = jax.ShapeDtypeStruct((2, 8, 16, 19), jnp.float32)
    compiled = jax.jit(lambda x: upsampled_argmax(x, (32, 64))).lower(logits).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * 32 * 64 * 19 * 4 / 2


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_no_array_is_as_large_as_the_upsampled_logits(platform):
    logits, labels = _inputs("4", np.float32)

    gradient = jax.jit(jax.grad(lambda logits: upsampled_pixel_losses(logits, labels).sum()))
    text = jax.export.export(gradient, platforms=[platform])(logits).mlir_module()
    assert f"tensor<2x6x5x{labels.shape[2]}xf32>" in text  # planes with the rows above and below
    sizes = [
        np.prod([int(side) for side in shape.split("x")])
        for shape in set(re.findall(r"tensor<([\dx]+)xf32>", text))
    ]
    assert max(sizes) == 2 * 6 * 5 * labels.shape[2]


@pytest.mark.parametrize(("platform", "barriers"), [("cuda", 1), ("cpu", 0), ("tpu", 0)])
def test_gpus_mix_the_strips_again_in_the_gradient(platform, barriers):
    logits, labels = _inputs("4", np.float32)
    gradient = jax.jit(jax.grad(lambda logits: upsampled_pixel_losses(logits, labels).sum()))
    module = jax.export.export(gradient, platforms=[platform])(logits).mlir_module()
    assert module.count("stablehlo.optimization_barrier") == barriers


def test_a_loss_that_is_zero_by_rounding_keeps_its_gradient():
    logits = jnp.zeros((1, 3, 5, 3)).at[..., 0].set(20).at[..., 1].set(2.5)
    inputs = logits, np.zeros((1, 11, 18), np.int32), np.ones((1, 11, 18), np.float32)
    losses, gradient = _value_and_gradient(upsampled_pixel_losses)(*inputs)
    assert (np.asarray(losses) == 0).any()
    _, expected = _value_and_gradient(_upsample_and_compute)(*inputs)
    np.testing.assert_allclose(gradient[..., 1], expected[..., 1], rtol=0.01)


def test_losses_that_rounding_made_negative_are_zero():
    labels, label_logits = np.zeros((1, 8, 8), np.int32), np.full((1, 8, 8), 40, np.float32)
    losses = upsampled_loss._compute_losses(label_logits - 1e-5, label_logits, labels, 255)
    np.testing.assert_array_equal(losses, 0)
