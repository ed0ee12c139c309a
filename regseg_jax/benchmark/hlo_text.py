"""Reads the text of HLO: the computations of a compiled module, and the sizes of arrays."""

import math
import re
from typing import NamedTuple

_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16}
_BITS |= {"f16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64}
_BITS |= {"f8e4m3fn": 8, "f8e5m2": 8, "c128": 128}


class Instruction(NamedTuple):
    """A line of HLO.

    Attributes:
      name: unique in its computation.
      shape: of the result, as text.
      opcode: such as `fusion`.
      operands: names of other instructions; of a parameter, its number.
      attributes: the rest of the line.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def op_name(self) -> str:
        """The path of the operation in the JAX function; empty where the compiler added it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1) if found else ""


Computation = dict[str, Instruction]

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")


def parse_module(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a module by name, and the entry's name.

    Raises:
      ValueError: if there is no entry.
    """
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations[head.group(2)] = {}
            if head.group(1):
                entry = head.group(2)
        elif current is not None and (found := _LINE.match(line)):
            name, shape, opcode, rest = found.groups()
            end = _find_closing(rest)
            inside = rest[:end]
            operands = (inside,) if opcode == "parameter" else re.findall(r"%([\w.\-]+)", inside)
            current[name] = Instruction(name, shape, opcode, tuple(operands), rest[end:])
    if entry is None:
        raise ValueError("this is no HLO: it has no ENTRY computation")
    return computations, entry


def _find_closing(text: str) -> int:
    """Where the parenthesis closes that was open before text."""
    depth = 1
    for found in re.finditer(r"[()]", text):
        depth += 1 if found.group() == "(" else -1
        if not depth:
            return found.start()
    return len(text)


def parse_shapes(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    """Element type and sides of an array, or of each array of a tuple."""
    return [
        (kind, tuple(int(side) for side in sides.split(",") if side))
        for kind, sides in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shape)
        if kind in _BITS
    ]


def count_bytes(shape: str) -> int:
    """Of an array, or of all arrays of a tuple."""
    return sum(math.prod(sides) * _BITS[kind] // 8 for kind, sides in parse_shapes(shape))
