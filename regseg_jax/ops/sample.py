"""Bilinear sampling at real positions, zero outside the image."""

import jax
import jax.numpy as jnp
from jax import Array


def sample_bilinear(x: Array, rows: Array, columns: Array) -> Array:
    """Samples x between its pixels, as `torch.nn.functional.grid_sample(padding_mode="zeros")`.

    Args:
      x: [B, H, W, C].
      rows: f32[B, h, w], in pixels: 0 is the centre of the first row.
      columns: f32[B, h, w], likewise.

    Returns:
      [B, h, w, C] of x's dtype.
    """
    height, width = x.shape[1:3]
    top, left = jnp.floor(rows), jnp.floor(columns)
    total = jnp.zeros((*rows.shape, x.shape[-1]), jnp.promote_types(x.dtype, rows.dtype))
    for row in (top, top + 1):
        for column in (left, left + 1):
            weight = (1 - jnp.abs(rows - row)) * (1 - jnp.abs(columns - column))
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            row_index = jnp.clip(row, 0, height - 1).astype(int)
            column_index = jnp.clip(column, 0, width - 1).astype(int)
            pixels = jax.vmap(lambda image, i, j: image[i, j])(x, row_index, column_index)
            total += jnp.where(inside, weight, 0)[..., None] * pixels
    return total.astype(x.dtype)
