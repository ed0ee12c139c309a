"""The dilated convolution of a D block whose dilation rates are trained, in two ways."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax, random
from jax.typing import DTypeLike

from regseg_jax.models.blocks import DilatedConv
from regseg_jax.models.layers import kernel_init
from regseg_jax.models.variants import DilationRates
from regseg_jax.ops.continuous_conv import continuous_conv
from regseg_jax.ops.relaxed_conv import relaxed_conv

# The names of the parameters that convolutions with fixed dilation rates do not have.
RATES = "dilation_rates"
TAP_WIDTH = "tap_width"
LOGITS = "rate_logits"
TEMPERATURE = "temperature"
SEARCH_PARAMETERS = (RATES, TAP_WIDTH, LOGITS, TEMPERATURE)


def create_continuous_conv(*, dilation_rates: DilationRates, **options: Any) -> nn.Module:
    """What a searched model's blocks take as `dilated_conv`: searched are those with branches."""
    layer = SearchedConv if len(dilation_rates) > 1 else DilatedConv
    return layer(dilation_rates=dilation_rates, **options)


def create_relaxed_conv(*, dilation_rates: DilationRates, **options: Any) -> nn.Module:
    """The same for the relaxation; the largest of a block's rates is its largest candidate."""
    layer = RelaxedConv if len(dilation_rates) > 1 else DilatedConv
    return layer(dilation_rates=dilation_rates, **options)


class _BranchedConv(nn.Module):
    """What takes the place of `models.blocks.DilatedConv` in a search."""

    features: int
    dilation_rates: DilationRates
    group_width: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    def _split(self, x: Array) -> list[Array]:
        """The branches' channels, in the module's dtype.

        Raises:
          ValueError: if the stride is not 1, or these are not a multiple of the group width.
        """
        if self.stride != 1:
            raise ValueError(f"stride is {self.stride}; a searched convolution keeps the size")
        num_branches = len(self.dilation_rates)
        if x.shape[-1] % (num_branches * self.group_width):
            raise ValueError(
                f"{x.shape[-1]} channels do not split into {num_branches} branches of groups of "
                f"{self.group_width}; change config.search.num_branches"
            )
        return jnp.split(x.astype(self.dtype), num_branches, axis=-1)

    @property
    def _branch_features(self) -> int:
        return self.features // len(self.dilation_rates)


class SearchedConv(_BranchedConv):
    """`models.blocks.DilatedConv` with the rates as a parameter, f32[branches].

    The kernels are named and shaped as there. One more parameter, the width of the taps f32[],
    has no gradient: the search sets it (see `ops.continuous_conv`). The rates start at
    `dilation_rates`.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, features] -> [B, H, W, features]."""
        parts = self._split(x)
        rates = self.param(RATES, lambda _: jnp.array(self.dilation_rates, jnp.float32))
        tap_width = lax.stop_gradient(self.param(TAP_WIDTH, nn.initializers.ones, ()))
        outputs = [
            _Branch(self._branch_features, self.group_width, name=f"convs_{i}")(
                part, rates[i], tap_width
            )
            for i, part in enumerate(parts)
        ]
        return jnp.concatenate(outputs, axis=-1)


class _Branch(nn.Module):
    """A grouped 3x3 convolution at a given real-valued dilation rate."""

    features: int
    group_width: int

    @nn.compact
    def __call__(self, x: Array, dilation_rate: Array, tap_width: Array) -> Array:
        kernel = self.param("kernel", kernel_init, (3, 3, self.group_width, self.features))
        return continuous_conv(
            x,
            kernel.astype(x.dtype),
            dilation_rate,
            groups=x.shape[-1] // self.group_width,
            tap_width=tap_width,
        )


class RelaxedConv(_BranchedConv):
    """`models.blocks.DilatedConv` as a mixture over candidate rates, see `ops.relaxed_conv`.

    Every candidate of a branch has a kernel of its own, [K, 3, 3, C / groups, O]. The candidates'
    weights are a softmax of a parameter f32[branches, K], divided by another, the temperature
    f32[], which has no gradient: the search sets it. There is a branch for each of
    `dilation_rates`, and the candidates are 1 to the largest of them.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, features] -> [B, H, W, features]."""
        parts, candidates = self._split(x), range(1, max(self.dilation_rates) + 1)
        shape = (len(parts), len(candidates))
        logits = self.param(LOGITS, nn.initializers.zeros, shape)
        temperature = lax.stop_gradient(self.param(TEMPERATURE, nn.initializers.ones, ()))
        weights = nn.softmax(logits / temperature)
        outputs = [
            _RelaxedBranch(self._branch_features, self.group_width, name=f"convs_{i}")(
                part, weights[i], candidates
            )
            for i, part in enumerate(parts)
        ]
        return jnp.concatenate(outputs, axis=-1)


class _RelaxedBranch(nn.Module):
    """Grouped 3x3 convolutions at all candidate rates, added up with their weights."""

    features: int
    group_width: int

    @nn.compact
    def __call__(self, x: Array, weights: Array, candidates: Sequence[int]) -> Array:
        shape = (len(candidates), 3, 3, self.group_width, self.features)
        kernels = self.param("kernel", _kernels_init, shape)
        groups = x.shape[-1] // self.group_width
        return relaxed_conv(x, kernels, weights, candidates, groups=groups)


def _kernels_init(key: Array, shape: Sequence[int]) -> Array:
    """As `kernel_init`, for each of several kernels."""
    return jnp.stack([kernel_init(key, tuple(shape[1:])) for key in random.split(key, shape[0])])
