"""Counts what a compiled program does, from the text of its HLO.

Nothing here is measured. Bytes are what each kernel reads and writes if no cache holds any of it
(of an array that a kernel only takes slices of, the slices);
operations are those of convolutions and matrix products; cycles are the TPU compiler's own
estimate, where it gives one. A fused kernel counts where its last operation belongs.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable
from typing import NamedTuple

_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16}
_BITS |= {"f16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64}
_BITS |= {"f8e4m3fn": 8, "f8e5m2": 8, "c128": 128}

COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all"),
    "collective-broadcast",
)
# Not kernels: names for data, and the starts of what counts when it is done.
_FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "copy-start", "slice-start", "async-done"),
    *("async-update", "send-done", "recv-done"),
)
_SLICES = ("slice", "dynamic-slice", "gather")  # read no more than they return
_NO_ESTIMATE = 10**12  # cycles beyond it, or below 0, stand for "unknown"

AUGMENTATION, OPTIMIZER, LOSS = "augmentation", "optimizer", "upsampling, loss"
ENDS, UNNAMED = "input, output", "unnamed"
PARTS = ("stem", "stage", "decoder", LOSS, AUGMENTATION, OPTIMIZER, ENDS, UNNAMED)  # in this order


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


def find_part(op_name: str) -> str:
    """The part of the network or of the step that an operation belongs to."""
    path = re.sub(r"[\w.<>]+\(|\)", "", op_name).split("/")
    for name in path:
        if stage := re.fullmatch(r"(stage\d+)(_\d+)?", name):
            return stage.group(1)
        if name in ("stem", "decoder", AUGMENTATION):
            return name
    if re.search(r"\bjvp\(|RegSeg", op_name):
        return LOSS
    if not op_name:
        return UNNAMED
    return OPTIMIZER if "train_step" in op_name else ENDS


@dataclasses.dataclass
class Cost:
    """What a program, or a part of it, does on one device.

    Attributes:
      kernels: launched; collectives are not among them.
      bytes: read and written by them.
      flops: of convolutions and matrix products.
      cycles: the TPU compiler's estimate; 0 on GPUs.
    """

    kernels: int = 0
    bytes: int = 0
    flops: int = 0
    cycles: int = 0

    def add(self, other: "Cost", times: int = 1) -> None:
        """Adds another program's counts, times a factor."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name) + times * getattr(other, field.name)
            setattr(self, field.name, value)


@dataclasses.dataclass
class Program:
    """What a compiled program does on one device.

    Attributes:
      parts: by part, in the order of `PARTS`.
      collectives: by opcode, how many there are and the bytes that a device ends up with.
    """

    parts: dict[str, Cost]
    collectives: dict[str, tuple[int, int]]

    @property
    def total(self) -> Cost:
        """All parts together."""
        total = Cost()
        for cost in self.parts.values():
            total.add(cost)
        return total


def count_program(text: str) -> Program:
    """Counts a compiled module, loops as often as the compiler knows them to run."""
    counter = _Counter(*parse_module(text))
    counter.visit(counter.entry, 1)
    order = {name: i for i, name in enumerate(PARTS)}

    def key(part: str) -> tuple[int, int]:
        stride = part.removeprefix("stage")
        return (order["stage"], int(stride)) if stride != part else (order[part], 0)

    parts = {part: counter.parts[part] for part in sorted(counter.parts, key=key)}
    return Program(parts, dict(counter.collectives))


class _Counter:
    def __init__(self, computations: dict[str, Computation], entry: str):
        self.computations, self.entry = computations, entry
        self.parts = collections.defaultdict(Cost)
        self.collectives = collections.defaultdict(lambda: (0, 0))

    def visit(self, name: str, times: int) -> None:
        """Adds a computation that runs this many times, and those that it calls."""
        computation = self.computations[name]
        for instruction in computation.values():
            kind = instruction.opcode.removesuffix("-done").removesuffix("-start")
            if kind in COLLECTIVES:
                # What is started counts once, when it is done: then its shape is the result's.
                if not instruction.opcode.endswith("-start"):
                    self._add_collective(instruction, kind, times)
            elif instruction.opcode in ("while", "call", "conditional", "async-start"):
                runs = times * _find_trip_count(instruction)
                for called in _find_called(instruction):
                    self.visit(called, runs)
            elif instruction.opcode not in _FREE:
                self.parts[find_part(instruction.op_name)].add(
                    self._count(instruction, computation), times
                )

    def _add_collective(self, instruction: Instruction, kind: str, times: int) -> None:
        number, size = self.collectives[kind]
        self.collectives[kind] = (number + times, size + times * count_bytes(instruction.shape))

    def _count(self, instruction: Instruction, computation: Computation) -> Cost:
        found = re.search(r'"estimated_cycles":"(-?\d+)"', instruction.attributes)
        cycles = int(found.group(1)) if found else 0
        return Cost(
            kernels=1,
            bytes=count_bytes(instruction.shape) + self._count_reads(instruction, computation),
            flops=self._count_flops(instruction, computation),
            cycles=cycles if 0 < cycles < _NO_ESTIMATE else 0,
        )

    def _count_reads(self, instruction: Instruction, computation: Computation) -> int:
        """Bytes of the operands, each once; of those that are only sliced, the slices."""
        if instruction.opcode in ("copy-done", "slice-done"):
            return count_bytes(instruction.shape)
        reads = collections.Counter()
        if instruction.opcode == "fusion":
            body = self.computations[_find_called(instruction)[0]]
            for inner in body.values():
                if inner.opcode == "parameter":
                    operand = instruction.operands[int(inner.operands[0])]
                    reads[operand] += _count_bytes_used(inner, body.values())
        else:
            for name in set(instruction.operands):
                reads[name] = _count_bytes_used(computation[name], [instruction])
        return sum(min(n, count_bytes(computation[name].shape)) for name, n in reads.items())

    def _count_flops(self, instruction: Instruction, computation: Computation) -> int:
        if instruction.opcode == "fusion":
            return sum(
                self._count_flops(inner, self.computations[called])
                for called in _find_called(instruction)
                for inner in self.computations[called].values()
            )
        if instruction.opcode == "dot" or "__cublas$" in instruction.attributes:
            return _count_dot(instruction, computation)
        if instruction.opcode == "convolution" or "__cudnn$conv" in instruction.attributes:
            return _count_convolution(instruction, computation)
        return 0


def _count_bytes_used(operand: Instruction, instructions: Iterable[Instruction]) -> int:
    """Bytes of an operand that these read of it: what they slice, or all of it."""
    users = [x for x in instructions if operand.name in x.operands]
    if all(x.opcode in _SLICES and x.operands.index(operand.name) == 0 for x in users):
        return sum(count_bytes(x.shape) for x in users)
    return count_bytes(operand.shape)


def _find_called(instruction: Instruction) -> list[str]:
    """The computations that an instruction runs; of a conditional the longest branch is unknown."""
    attributes = instruction.attributes
    called = re.findall(r"\b(?:calls|to_apply|body)=%?([\w.\-]+)", attributes)
    called += re.findall(r"\b(?:true|false)_computation=%?([\w.\-]+)", attributes)
    if branches := re.search(r"branch_computations=\{([^}]*)\}", attributes):
        called += re.findall(r"%?([\w.\-]+)", branches.group(1))
    return called


def _find_trip_count(instruction: Instruction) -> int:
    found = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.attributes)
    return int(found.group(1)) if found else 1


def _get_sides(instruction: Instruction) -> tuple[int, ...]:
    """Of an array, or of the first array of a tuple, whose others are scratch space."""
    return parse_shapes(instruction.shape)[0][1]


def _count_dot(instruction: Instruction, computation: Computation) -> int:
    """Two operations for each product: the result's size times what is summed over."""
    sides = _get_sides(computation[instruction.operands[0]])
    found = re.search(
        r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)[}\]]', instruction.attributes
    )
    summed = [int(axis) for axis in found.group(1).replace('"', "").split(",") if axis]
    return 2 * math.prod(_get_sides(instruction)) * math.prod(sides[axis] for axis in summed)


def _count_convolution(instruction: Instruction, computation: Computation) -> int:
    """Two operations for each product of a tap and an output feature, padding counted as pixels."""
    labels = re.search(r"dim_labels=\w+_(\w+)->", instruction.attributes).group(1)
    result, lhs, rhs = (
        _get_sides(x)
        for x in (instruction, *(computation[name] for name in instruction.operands[:2]))
    )
    if "convBackwardInput" in instruction.attributes:  # operands: the output's gradient, kernel
        outputs, kernel = lhs, rhs
    elif "convBackwardFilter" in instruction.attributes:  # input, the output's gradient
        outputs, kernel = rhs, result
    else:
        outputs, kernel = result, rhs
    dilation = re.search(r"lhs_dilate=([\dx]+)", instruction.attributes)
    zeros = math.prod(int(x) for x in dilation.group(1).split("x")) if dilation else 1
    return 2 * math.prod(outputs) * math.prod(kernel) // kernel[labels.index("o")] // zeros
