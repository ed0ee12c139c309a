"""A model whose dilation rates are searched, and the bounds that they keep (paper, section 3)."""

import dataclasses

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from regseg_jax.models import field_of_view, variants
from regseg_jax.models.field_of_view import LayerFieldOfView
from regseg_jax.models.regseg import RegSeg
from regseg_jax.models.searched_conv import create_continuous_conv, create_relaxed_conv

METHODS = {"relaxed": create_relaxed_conv, "continuous": create_continuous_conv}


def create_search_model(
    variant: variants.Variant,
    num_classes: int,
    dtype: DTypeLike,
    *,
    method: str,
    num_branches: int,
    rate: int,
) -> RegSeg:
    """The variant with searched branches in every block at 1/16, the strided one left out.

    Args:
      variant: to search.
      num_classes: of the output.
      dtype: of the computation.
      method: `relaxed` or `continuous`.
      num_branches: of each block.
      rate: the largest candidate, or where every rate starts; the bound, where that is lower.

    Raises:
      ValueError: if a block's channels do not split into this many branches.
    """
    num_blocks = len(variants.get_dilation_rates(variant.backbone))
    ones = variants.replace_dilation_rates(variant.backbone, num_blocks * [num_branches * [1]])
    wanted = jnp.full((num_blocks, num_branches), rate)
    clamped = clamp_rates(wanted, searched_layers(ones)[0].field_of_view_before)
    backbone = variants.replace_dilation_rates(ones, clamped.tolist())
    return RegSeg(
        dataclasses.replace(variant, backbone=backbone), num_classes, METHODS[method], dtype
    )


def searched_layers(backbone: variants.Backbone) -> tuple[LayerFieldOfView, ...]:
    """The layers at 1/16, the strided one left out."""
    return tuple(
        layer for layer in field_of_view.trace_field_of_view(backbone) if layer.stride_before == 16
    )


def clamp_rates(rates: Array, first_field_of_view: int) -> Array:
    """Puts rates between 1 and the bound that the (clamped) rates before them set.

    Args:
      rates: [blocks, branches], integers or real numbers, in the order of computation.
      first_field_of_view: of the first block's input, in pixels.

    Returns:
      The same shape and dtype; whole numbers stay whole.
    """
    seen, clamped = first_field_of_view, []
    for block in rates:
        bound = field_of_view.max_dilation_rate(seen, 16)
        clamped.append(jnp.clip(block, 1, bound).astype(rates.dtype))
        seen = field_of_view.widen(seen, 16, clamped[-1].max())
    return jnp.stack(clamped)
