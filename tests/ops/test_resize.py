import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from regseg_jax.ops.resize import adaptive_average_pool, average_pool_2x2, upsample_bilinear

# (height, width) of input and output
SIZES = [
    ((5, 7), (10, 28)),  # whole factors
    ((5, 7), (15, 7)),  # one axis only
    ((1, 1), (4, 3)),
    ((4, 4), (7, 13)),  # as ceil(n / 2) leaves them
    ((5, 7), (9, 14)),  # one whole factor, one not
    ((2, 3), (61, 50)),
    ((9, 7), (5, 3)),  # smaller
    ((6, 8), (3, 1)),
]


def _random(shape, dtype=np.float64):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def _torch(f, x, y_cotangent=None):
    """f of PyTorch on NHWC arrays: the output and the gradient of its product with a cotangent."""
    x = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    y = f(x)
    if y_cotangent is not None:
        y.backward(torch.tensor(y_cotangent.transpose(0, 3, 1, 2)))
    nhwc = [t.detach().numpy().transpose(0, 2, 3, 1) for t in (y, x.grad) if t is not None]
    return nhwc if y_cotangent is not None else nhwc[0]


def _assert_equals_torch(f, torch_f, x, out_shape):
    """Values and gradients, in float64."""
    cotangent = np.random.default_rng(1).standard_normal(out_shape)
    with jax.enable_x64(True):

        @jax.jit
        def value_and_gradient(x):
            y, vjp = jax.vjp(f, x)
            return y, vjp(jnp.asarray(cotangent))[0]

        actual = value_and_gradient(x)
    for a, e in zip(actual, _torch(torch_f, x, cotangent), strict=True):
        assert a.dtype == np.float64
        np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size", "out_size"), SIZES)
def test_upsample_equals_interpolate_with_its_gradient(size, out_size, align_corners):
    _assert_equals_torch(
        lambda x: upsample_bilinear(x, out_size, align_corners=align_corners),
        lambda x: F.interpolate(x, out_size, mode="bilinear", align_corners=align_corners),
        _random((2, *size, 3)),
        (2, *out_size, 3),
    )


def test_upsample_to_the_same_size_is_the_identity():
    x = jnp.asarray(_random((1, 3, 4, 2), np.float32))
    assert (upsample_bilinear(x, (3, 4)) == x).all()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("out_size", [(10, 14), (9, 13)])
def test_upsample_keeps_half_precision(dtype, out_size):
    x = jnp.asarray(_random((1, 5, 7, 3)), dtype)
    upsample = jax.jit(lambda x: upsample_bilinear(x, out_size))
    y = upsample(x)
    assert y.dtype == dtype
    expected = upsample(x.astype(jnp.float32))
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.03)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("out_size", [(10, 14), (9, 13)])
def test_upsample_neither_gathers_nor_scatters(out_size, align_corners):
    # Scatters add in any order on a GPU, so that two equal steps would part.
    def loss(x):
        return (upsample_bilinear(x, out_size, align_corners=align_corners) ** 2).sum()

    text = jax.jit(jax.grad(loss)).lower(jnp.ones((1, 5, 7, 3))).as_text()
    assert re.findall(r"stablehlo\.(?:gather|scatter)", text) == []


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 4), (1, 1), (3, 2)])
def test_average_pool_counts_only_pixels_inside(size):
    _assert_equals_torch(
        average_pool_2x2,
        lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True),
        _random((2, *size, 3)),
        (2, -(-size[0] // 2), -(-size[1] // 2), 3),
    )


def test_average_pool_keeps_half_precision():
    x = jax.ShapeDtypeStruct((1, 5, 7, 3), jnp.bfloat16)
    assert jax.eval_shape(average_pool_2x2, x).dtype == jnp.bfloat16


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(6, 12), (5, 7), (4, 1)])  # bins divide it, overlap, repeat
def test_adaptive_pool_equals_torch(size, bins):
    _assert_equals_torch(
        lambda x: adaptive_average_pool(x, bins),
        lambda x: F.adaptive_avg_pool2d(x, bins),
        _random((2, *size, 3)),
        (2, bins, bins, 3),
    )
