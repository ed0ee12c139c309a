"""The dilated convolution of a D block with a trained, real-valued dilation rate per branch."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from regseg_jax.models.blocks import DilatedConv
from regseg_jax.models.layers import kernel_init
from regseg_jax.models.variants import DilationRates
from regseg_jax.ops.continuous_conv import continuous_conv

# The names of the parameters that convolutions with fixed dilation rates do not have.
RATES = "dilation_rates"
TAP_WIDTH = "tap_width"


def create_dilated_conv(*, dilation_rates: DilationRates, **options: Any) -> nn.Module:
    """What a searched model's blocks take as `dilated_conv`: searched are those with branches."""
    layer = SearchedConv if len(dilation_rates) > 1 else DilatedConv
    return layer(dilation_rates=dilation_rates, **options)


class SearchedConv(nn.Module):
    """`models.blocks.DilatedConv` with the rates as a parameter, f32[branches].

    The kernels are named and shaped as there. One more parameter, the width of the taps f32[],
    has no gradient: the search sets it (see `ops.continuous_conv`).

    Attributes:
      dilation_rates: where the rates start.
    """

    features: int
    dilation_rates: DilationRates
    group_width: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, features] -> [B, H, W, features].

        Raises:
          ValueError: if the stride is not 1, or the branches' channels are not a multiple of the
            group width.
        """
        num_branches = len(self.dilation_rates)
        if self.stride != 1:
            raise ValueError(f"stride is {self.stride}; a searched convolution keeps the size")
        if x.shape[-1] % (num_branches * self.group_width):
            raise ValueError(
                f"{x.shape[-1]} channels do not split into {num_branches} branches of groups of "
                f"{self.group_width}; change config.search.num_branches"
            )
        rates = self.param(RATES, lambda _: jnp.array(self.dilation_rates, jnp.float32))
        tap_width = lax.stop_gradient(self.param(TAP_WIDTH, nn.initializers.ones, ()))
        parts = jnp.split(x, num_branches, axis=-1)
        features = self.features // num_branches
        outputs = [
            _Branch(features, self.group_width, self.dtype, name=f"convs_{i}")(
                part, rates[i], tap_width
            )
            for i, part in enumerate(parts)
        ]
        return jnp.concatenate(outputs, axis=-1)


class _Branch(nn.Module):
    """A grouped 3x3 convolution at a given real-valued dilation rate."""

    features: int
    group_width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, dilation_rate: Array, tap_width: Array) -> Array:
        kernel = self.param("kernel", kernel_init, (3, 3, self.group_width, self.features))
        return continuous_conv(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            dilation_rate,
            groups=x.shape[-1] // self.group_width,
            tap_width=tap_width,
        )
