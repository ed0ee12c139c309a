"""Reads the values of flags."""

from collections.abc import Sequence


def parse_size(text: str, flag: str = "size") -> tuple[int, int]:
    """Reads `HEIGHT,WIDTH`.

    Raises:
      ValueError: if these are not two positive integers.
    """
    numbers = [number.strip() for number in text.split(",")]
    if len(numbers) != 2 or not all(number.isdecimal() and int(number) for number in numbers):
        raise ValueError(f"--{flag} is {text!r}: it must be HEIGHT,WIDTH, such as 1024,2048")
    return int(numbers[0]), int(numbers[1])


def parse_seeds(text: str) -> list[int]:
    """Reads the numbers of `--seeds`, with commas between.

    Raises:
      ValueError: if one is not a whole number, from 0 on.
    """
    seeds = [seed.strip() for seed in text.split(",")]
    if not all(seed.isdecimal() for seed in seeds):
        raise ValueError(f"--seeds is {text!r}: it must be whole numbers, such as 0,1,2")
    return [int(seed) for seed in seeds]


def parse_choices(text: str, flag: str, known: Sequence[str]) -> list[str]:
    """Reads values with commas between.

    Raises:
      ValueError: if one of them is not known.
    """
    values = text.split(",")
    if unknown := [value for value in values if value not in known]:
        raise ValueError(f"--{flag} has {unknown}; known are {', '.join(known)}")
    return values
