"""Prefixes of wrappers in the names of a state dict: `module.`, `model.`, `_orig_mod.`, `net.`."""

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")

# Every model has it, and no module inside a model has this name.
_FIRST_NAME = "stem.conv.weight"


def strip_prefix(state_dict: Mapping[str, Value]) -> tuple[dict[str, Value], str]:
    """The entries of the model by the author's names, and the prefix that stood before them.

    The prefix is what stands before `stem.conv.weight`, so that any combination is found. Entries
    without it (the loss's, an average's count) are left out.

    Raises:
      ValueError: if several models are in the state dict.
    """
    prefixes = [
        name.removesuffix(_FIRST_NAME)
        for name in state_dict
        if name == _FIRST_NAME or name.endswith(f".{_FIRST_NAME}")
    ]
    if len(prefixes) > 1:
        raise ValueError(
            f"the state dict holds {len(prefixes)} models, under the prefixes {prefixes}; "
            "save only the one that you want"
        )
    prefix = prefixes[0] if prefixes else ""
    stripped = {
        name.removeprefix(prefix): value
        for name, value in state_dict.items()
        if name.startswith(prefix)
    }
    return stripped, prefix
