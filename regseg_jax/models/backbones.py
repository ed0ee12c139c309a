"""The backbone: the stages of a `variants.Backbone`; the stem is in `regseg`."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from regseg_jax.models import variants
from regseg_jax.models.blocks import DBlock, DilatedConv


class BackboneStages(nn.Module):
    """Runs the blocks of every stage and collects the last output at strides 4, 8 and 16.

    Attributes:
      spec: the stages.
      dilated_conv: builds each block's 3x3 convolution, see `blocks.DBlock`.
    """

    spec: variants.Backbone
    dilated_conv: Callable[..., nn.Module] = DilatedConv
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> dict[str, Array]:
        """[B, H/2, W/2, 32] -> {"x4", "x8", "x16"}, each [B, H/s, W/s, C], sizes rounded up."""
        features = {}
        stride = 2
        for stage, blocks in self.spec.stages:
            for i, block in enumerate(blocks):
                x = DBlock(
                    block.out_channels,
                    block.dilation_rates,
                    self.spec.group_width,
                    block.stride,
                    self.spec.pool_in_shortcut,
                    self.dilated_conv,
                    self.dtype,
                    self.axis_name,
                    # A stage of one block has no index, as in the author's state dicts.
                    name=stage if len(blocks) == 1 else f"{stage}_{i}",
                )(x, train=train)
                stride *= block.stride
            features[f"x{stride}"] = x
        return features
