"""Functions that platforms compute in different ways."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array, lax


def choose_by_platform(**lowerings: Callable[..., Array]) -> Callable[..., Array]:
    """One function of arrays from several that are equal up to rounding.

    Differentiable once, in reverse mode. The platform is chosen within the forward and within the
    backward pass, not around both, so that no lowering keeps what only another one needs.

    Args:
      **lowerings: by platform, as of `jax.lax.platform_dependent`; `default` for the others.
    """

    @jax.custom_vjp
    def compute(*arrays: Array) -> Array:
        return lax.platform_dependent(*arrays, **lowerings)

    def forward(*arrays: Array) -> tuple[Array, tuple[Array, ...]]:
        return compute(*arrays), arrays

    def backward(arrays: tuple[Array, ...], dy: Array) -> Any:
        gradients = {name: _differentiate(lowering) for name, lowering in lowerings.items()}
        return lax.platform_dependent(dy, *arrays, **gradients)

    compute.defvjp(forward, backward)
    return compute


def _differentiate(function: Callable[..., Array]) -> Callable[..., tuple[Array, ...]]:
    return lambda dy, *arrays: jax.vjp(function, *arrays)[1](dy)
