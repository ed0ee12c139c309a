import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from regseg_jax.ops.sample import sample_bilinear

IMAGE = np.random.default_rng(0).standard_normal((2, 5, 7, 3))


def _positions(kind):
    """Rows and columns f64[2, 4, 6], also beyond all four edges."""
    rng = np.random.default_rng(1)
    rows, columns = rng.uniform(-2.5, 6.5, (2, 4, 6)), rng.uniform(-2.5, 8.5, (2, 4, 6))
    return (np.round(rows), np.round(columns)) if kind == "whole" else (rows, columns)


def _torch_sample(image, rows, columns):
    """`grid_sample` at positions in pixels, on NHWC tensors."""
    height, width = image.shape[1:3]
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1)
    y = F.grid_sample(image.permute(0, 3, 1, 2), grid, padding_mode="zeros", align_corners=False)
    return y.permute(0, 2, 3, 1)


def test_equals_grid_sample_with_all_gradients():
    positions = _positions("between")
    tensors = [torch.tensor(a, requires_grad=True) for a in (IMAGE, *positions)]
    expected = _torch_sample(*tensors)
    cotangent = np.random.default_rng(2).standard_normal(expected.shape)
    expected.backward(torch.tensor(cotangent))
    with jax.enable_x64(True):

        @jax.jit
        def value_and_gradients(*inputs):
            y, vjp = jax.vjp(sample_bilinear, *inputs)
            return y, vjp(cotangent)

        y, gradients = value_and_gradients(IMAGE, *positions)
    np.testing.assert_allclose(y, expected.detach(), atol=1e-12)
    for gradient, tensor in zip(gradients, tensors, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad, atol=1e-11)


def test_whole_positions_read_pixels_and_zeros_outside():
    rows, columns = _positions("whole")
    with jax.enable_x64(True):
        y = np.asarray(jax.jit(sample_bilinear)(IMAGE, rows, columns))
    for (b, i, j), row in np.ndenumerate(rows):
        row, column = int(row), int(columns[b, i, j])
        inside = 0 <= row < 5 and 0 <= column < 7
        np.testing.assert_array_equal(y[b, i, j], IMAGE[b, row, column] if inside else 0)


def test_slope_at_a_whole_position_is_that_to_the_next_pixel():
    x = jnp.asarray([[1.0, 4.0], [11.0, 24.0]])[None, :, :, None]

    def at(row, column):
        return sample_bilinear(x, row.reshape(1, 1, 1), column.reshape(1, 1, 1)).sum()

    zero = jnp.zeros(())
    d_row, d_column = jax.jit(jax.grad(at, (0, 1)))(zero, zero)
    assert (d_row, d_column) == (10, 3)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_keeps_half_precision_and_interpolates_in_float32(dtype):
    x = jnp.asarray(IMAGE, dtype)
    rows, columns = (jnp.asarray(p, jnp.float32) for p in _positions("between"))
    sample = jax.jit(sample_bilinear)
    y = sample(x, rows, columns)
    assert y.dtype == dtype
    expected = sample(x.astype(jnp.float32), rows, columns).astype(dtype)
    np.testing.assert_array_equal(y.astype(jnp.float32), expected.astype(jnp.float32))
