"""Where XLA is to forget, on NVIDIA GPUs, how an array was computed."""

from jax import Array, lax


def gpu_barrier(x: Array) -> Array:
    """The same array. XLA for NVIDIA GPUs then reads it from memory rather than computing it
    again, and does not merge what is computed from it with the same computed from x.
    """
    return lax.platform_dependent(x, cuda=lax.optimization_barrier, default=lambda x: x)
