"""Convolutions, written in the form that is fast on the platform they run on."""

import jax
from jax import lax
from jax import numpy as jnp

LOWERINGS = ("conv", "dense")


def grouped_conv(x, kernel, *, stride=1, dilation_rate=1, groups=1, lowering=None):
    """Convolve an image batch with PyTorch's padding (preliminary)."""
    if lowering is None:
        lowering = "dense" if jax.default_backend() == "cpu" else "conv"
    if lowering == "dense":
        k = kernel.shape[0]
        if k == 1 and groups == 1:
            return jnp.einsum("bhwi,io->bhwo", x[:, ::stride, ::stride], kernel[0, 0])
        if groups > 1:
            kernel = block_diagonal(kernel, groups)
            groups = 1
    pad = dilation_rate * (kernel.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        rhs_dilation=(dilation_rate, dilation_rate),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def block_diagonal(kernel, groups):
    """Return the dense kernel [k, k, C, O] equal to the grouped kernel [k, k, C/groups, O]."""
    k1, k2, width, out = kernel.shape
    per_group = kernel.reshape(k1, k2, width, groups, out // groups)
    blocks = jnp.einsum("hwigo,gf->hwfigo", per_group, jnp.eye(groups, dtype=kernel.dtype))
    return blocks.reshape(k1, k2, groups * width, out)
