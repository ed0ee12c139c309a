"""PyTorch files as they are found -> state dicts. Needs torch and no other package."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regseg_jax.weights.prefixes import strip_prefix

# Where training scripts put the state dict, the likeliest first.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "weights", "net", "ema")


class StateDictFile(NamedTuple):
    """What a PyTorch file holds.

    Attributes:
      tensors: the state dict by the author's names, on the CPU, detached.
      metadata: what `regseg_jax.export` wrote next to it; empty for files of other programs.
      report: one line: where in the file the state dict was, and what was left out.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]
    report: str


def load_state_dict_file(path: str | os.PathLike) -> StateDictFile:
    """Reads the state dict of a file by `torch.save`.

    It may be bare or under one of the usual keys (also one inside another), its tensors parameters
    or not, its names with prefixes such as `module.` or `_orig_mod.`, in a training state next to
    the optimizer's. Nothing but tensors and plain containers is unpickled.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if it is not a PyTorch file, is damaged, holds other objects, has no state dict or
        several, or a tensor in it is not finite.
    """
    content = _load(path)
    found = _find_state_dict(content)
    if found is None:
        raise ValueError(
            f"{path} has no state dict, neither bare nor under one of the keys "
            f"{', '.join(_WRAPPERS)}; save one: torch.save(model.state_dict(), path)"
        )
    keys, state_dict = found
    try:
        tensors, prefix = strip_prefix(state_dict)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(
            f"{path} has NaN or infinity in {', '.join(broken[:10])}; the training has diverged: "
            "use an earlier checkpoint"
        )
    others = {name: value for name, value in content.items() if name not in keys} if keys else {}
    parts = [f"{path}: {len(tensors)} tensors"]
    parts += [f"under {'.'.join(keys)!r}"] if keys else []
    parts += [f"without the prefix {prefix!r}"] if prefix else []
    is_ours = keys == ("model",) and "name" in others and "num_classes" in others
    left_out = [] if is_ours else [repr(name) for name in others]
    left_out += [repr(name) for name in state_dict if not name.startswith(prefix)]
    parts += [f"not read: {', '.join(left_out[:10])}"] if left_out else []
    return StateDictFile(tensors, others if is_ours else {}, ", ".join(parts))


def _find_state_dict(content: Any) -> tuple[tuple[str, ...], dict[str, Tensor]] | None:
    """The keys that lead to the first state dict, and that."""
    if not isinstance(content, Mapping) or not content:
        return None
    if all(isinstance(name, str) for name in content) and all(
        isinstance(tensor, Tensor) for tensor in content.values()
    ):
        return (), dict(content)
    for key in _WRAPPERS:
        if found := _find_state_dict(content.get(key)):
            return (key, *found[0]), found[1]
    return None


def _load(path: str | os.PathLike) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged files raise anything, KeyError and EOFError included
        if "GLOBAL" in str(error) or "Unsupported class" in str(error):
            raise ValueError(
                f"{path} holds Python objects besides tensors, which could run code when read; "
                "save the state dict alone: torch.save(model.state_dict(), path). Where you trust "
                "the file, read it with torch.load(path, weights_only=False) to do so"
            ) from error
        raise ValueError(
            f"{path} ({os.path.getsize(path):,} bytes) is not a PyTorch file, or is damaged or "
            "cut off; copy or download it again, or write it with torch.save"
        ) from error
