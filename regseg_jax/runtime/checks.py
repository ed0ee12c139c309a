"""Checks on the values of a config; each error names the key as a user types it."""

import math
from collections.abc import Iterable, Sequence


def check_one_of(key: str, value: object, legal: Iterable[str]) -> None:
    """Raises ValueError unless value is among the legal ones."""
    legal = tuple(legal)
    if value not in legal:
        raise ValueError(f"config.{key} is {value!r}; use one of {', '.join(legal)}")


def check_integer(key: str, value: object, at_least: int) -> None:
    """Raises ValueError unless value is an integer of at least that size."""
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"config.{key} is {value!r}; set an integer of at least {at_least}")


def check_fraction(key: str, value: object) -> None:
    """Raises ValueError unless value is a number from 0 to 1, both included."""
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"config.{key} is {value!r}; set a fraction from 0 to 1")


def check_number(
    key: str, value: object, *, above: float | None = None, at_least: float | None = None
) -> None:
    """Raises ValueError unless value is a finite number above or at least the given one."""
    is_legal = _is_number(value) and math.isfinite(value)
    if above is not None:
        wanted, is_legal = f"above {above}", is_legal and value > above
    else:
        wanted, is_legal = f"of at least {at_least}", is_legal and value >= at_least
    if not is_legal:
        raise ValueError(f"config.{key} is {value!r}; set a number {wanted}")


def check_size(key: str, size: Sequence[object], *, or_empty: bool = False) -> None:
    """Raises ValueError unless size is (height, width), in pixels."""
    is_size = len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)
    if not is_size and not (or_empty and len(size) == 0):
        raise ValueError(f"config.{key} is {size!r}; set (height, width), in pixels")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
