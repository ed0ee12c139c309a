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

from regseg_jax.benchmark.hlo_text import (
    Computation,
    Instruction,
    count_bytes,
    parse_module,
    parse_shapes,
)

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


class Collective(NamedTuple):
    """Something that devices send each other.

    Attributes:
      kind: one of `COLLECTIVES`.
      bytes: that a device ends up with, each time.
      times: that it runs.
      beside: the kernels that are scheduled between its start and its end; none for one that the
        compiler made synchronous.
    """

    kind: str
    bytes: int
    times: int
    beside: Cost


@dataclasses.dataclass
class Program:
    """What a compiled program does on one device.

    Attributes:
      parts: by part, in the order of `PARTS`.
      collectives: in the order of the schedule.
    """

    parts: dict[str, Cost]
    collectives: tuple[Collective, ...]

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
    return Program(parts, tuple(counter.collectives))


class _Counter:
    def __init__(self, computations: dict[str, Computation], entry: str):
        self.computations, self.entry = computations, entry
        self.parts = collections.defaultdict(Cost)
        self.collectives, self.so_far, self.started = [], Cost(), {}

    def visit(self, name: str, times: int) -> None:
        """Adds a computation that runs this many times, and those that it calls."""
        computation = self.computations[name]
        for instruction in computation.values():
            opcode = instruction.opcode
            kind = opcode.removesuffix("-done").removesuffix("-start")
            if kind in COLLECTIVES and opcode.endswith("-start"):
                self.started[instruction.name] = dataclasses.replace(self.so_far)
            elif kind in COLLECTIVES:
                self._add_collective(instruction, kind, times)
            elif opcode in ("while", "call", "conditional", "async-start"):
                runs = times * _find_trip_count(instruction)
                for called in _find_called(instruction):
                    self.visit(called, runs)
            elif opcode not in _FREE:
                cost = self._count(instruction, computation)
                self.parts[find_part(instruction.op_name)].add(cost, times)
                self.so_far.add(cost, times)

    def _add_collective(self, instruction: Instruction, kind: str, times: int) -> None:
        """Adds one that is done: then its shape is the result's."""
        beside = Cost()
        if instruction.opcode.endswith("-done"):
            beside.add(self.so_far)
            beside.add(self.started.pop(instruction.operands[0]), -1)
        size = count_bytes(instruction.shape)
        self.collectives.append(Collective(kind, size, times, beside))

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
