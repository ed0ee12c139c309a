"""Batch norms folded into the convolutions before them, for inference."""

import functools
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.experimental.layout import Format, Layout
from jax.sharding import Sharding
from jax.typing import DTypeLike

from regseg_jax.models.variants import BATCH_NORM_EPSILON


def prepare_inference(variables: dict[str, Any], dtype: DTypeLike) -> dict[str, Any]:
    """`fold_batch_norm`, and kernels in the memory order that the device's convolutions read."""
    return jax.tree.map(
        lambda x: jax.device_put(x, choose_format(x, x.sharding)), fold_batch_norm(variables, dtype)
    )


def choose_format(x: Array | jax.ShapeDtypeStruct, sharding: Sharding) -> Format | Sharding:
    """Where and in what order of axes a folded variable is best kept.

    Shapes stay: JAX compiles what an array is passed to for the array's memory order.

    Args:
      x: of the result of `fold_batch_norm`.
      sharding: its devices, which need not exist.
    """
    platform = next(iter(sharding.device_set)).platform
    if platform != "gpu" or x.ndim != 4:
        return sharding
    # As O, H, W, I: of H, W, I, O cuDNN's convolutions get a copy at every call.
    return Format(Layout((3, 0, 1, 2)), sharding)


@functools.partial(jax.jit, static_argnames="dtype")
def fold_batch_norm(variables: dict[str, Any], dtype: DTypeLike) -> dict[str, Any]:
    """What a model computes inference with, the same to rounding in fewer operations.

    Every convolution takes the multiplier of the batch norm behind it; of the batch norm the bias
    is left, and a model whose batch norms have nothing else adds that (see
    `models.layers.BatchNorm`). Training on it is refused there.

    Args:
      variables: {"params", "batch_stats"}, f32 or f64; of any model of the tables or a search.
      dtype: that the model computes in. Kernels and biases are cast to it once, after folding.

    Returns:
      {"params"}, kernels and biases of that dtype.

    Raises:
      ValueError: if a batch norm has no convolution before it.
    """
    params, stats = flatten_dict(variables["params"]), flatten_dict(variables["batch_stats"])
    folded = dict(params)
    for *path, name in sorted({path[:-1] for path in stats}):
        norm, conv = (*path, name), (*path, name.replace("bn", "conv"))
        multiplier = params[*norm, "scale"] * jax.lax.rsqrt(
            stats[*norm, "var"] + BATCH_NORM_EPSILON
        )
        del folded[*norm, "scale"]
        folded[*norm, "bias"] -= stats[*norm, "mean"] * multiplier
        kernels = _find_kernels(params, conv)
        sizes = [params[kernel].shape[-1] for kernel in kernels]
        if sum(sizes) != multiplier.size:
            raise ValueError(f"no convolution stands before the batch norm {'/'.join(norm)}")
        start = 0
        for kernel, size in zip(kernels, sizes, strict=True):
            folded[kernel] = params[kernel] * multiplier[start : start + size]
            start += size
    # Real dilation rates of a search stay float32: half precision would move the taps.
    cast = {k: x.astype(dtype) if k[-1] in ("kernel", "bias") else x for k, x in folded.items()}
    return {"params": unflatten_dict(cast)}


def _find_kernels(params: dict[tuple[str, ...], Array], conv: tuple[str, ...]) -> list[tuple]:
    """The kernel of a convolution, or those of its branches in order."""
    if (*conv, "kernel") in params:
        return [(*conv, "kernel")]
    branches = {path[len(conv)] for path in params if path[: len(conv)] == conv}
    numbers = sorted(int(name[6:]) for name in branches if name.startswith("convs_"))
    return [(*conv, f"convs_{i}", "kernel") for i in numbers]
