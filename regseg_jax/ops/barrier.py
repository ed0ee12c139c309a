"""What XLA for NVIDIA GPUs is told about making kernels; elsewhere it changes nothing."""

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike


def gpu_barrier(x: Array) -> Array:
    """The same array. XLA for NVIDIA GPUs then reads it from memory rather than computing it
    again, and does not merge what is computed from it with the same computed from x.
    """
    return lax.platform_dependent(x, cuda=lax.optimization_barrier, default=lambda x: x)


def gpu_common(number: ArrayLike) -> Array:
    """The same number, read from an array of two.

    XLA for NVIDIA GPUs computes arrays of equal size in one kernel, with what leads to them, if
    they have an array in common, of which a number alone is none. So arrays are best multiplied
    by, or selected by, the same one.
    """
    return gpu_barrier(jnp.full(2, number))[0]
