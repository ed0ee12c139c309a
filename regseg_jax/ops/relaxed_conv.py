"""A 3x3 convolution whose dilation rate is a weighted choice from candidates.

The relaxation of DARTS (Liu et al., 2019, arXiv 1806.09055, section 2.2): all candidates are
computed, each with a kernel of its own, and their outputs are added up with weights. Where a single
real rate sees its neighbours alone (`ops.continuous_conv`), this one compares near and far.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from regseg_jax.ops.continuous_conv import continuous_conv


def relaxed_conv(
    x: Array, kernels: Array, weights: Array, dilation_rates: Sequence[int], *, groups: int = 1
) -> Array:
    """The weighted sum of dilated convolutions, padded with zeros.

    Args:
      x: feature maps [B, H, W, C] of any float dtype and any H and W.
      kernels: [K, 3, 3, C / groups, O] of a float dtype, one for each candidate, grouped as in
        `ops.conv.grouped_conv`; cast to x's after weighting.
      weights: [K] of a float dtype, of the candidates.
      dilation_rates: the K candidates.
      groups: number of channel groups; divides C and O.

    Returns:
      Feature maps [B, H, W, O] of x's dtype.

    Raises:
      ValueError: if the shapes do not fit.
    """
    if kernels.shape[:1] != weights.shape or len(kernels) != len(dilation_rates):
        raise ValueError(
            f"kernels {kernels.shape}, weights {weights.shape} and {len(dilation_rates)} dilation "
            "rates are not of the same candidates"
        )

    @jax.checkpoint
    def convolve(kernel: Array, weight: Array, rate: Array) -> Array:
        return continuous_conv(x, (weight * kernel).astype(x.dtype), rate, groups=groups)

    # A loop over real rates: one small program, however many candidates and blocks there are. Its
    # gradient computes each candidate again, or the memory of all would be needed at once. The
    # first one stands before it, for zeros would not be of its type where x is sharded.
    candidates = kernels, weights, jnp.array(dilation_rates, jnp.float32)
    return jax.lax.scan(
        lambda total, candidate: (total + convolve(*candidate), None),
        convolve(*(part[0] for part in candidates)),
        tuple(part[1:] for part in candidates),
    )[0]
