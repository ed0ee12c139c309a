"""The names of the lowerings of a convolution, and tables of measured choices.

A lowering changes speed and rounding, never the function. `ops.conv` has a default for each
platform; a `LoweringTable` overrides it for the geometries that it lists. To tune a device, time
`grouped_conv(..., lowering=name)` for every name of `applicable_lowerings(geometry)`, forwards and
for each gradient, keep the fastest as `PassLowerings` and save `LoweringTable.to_json()`. To use
it, load it by `LoweringTable.from_json` and trace under it:

    with use_lowerings(table):
        train_step(state, batch)

The table is part of the key of `jax.jit`'s caches, so that a function is traced again under another
one. Bit-identical restarts need the same table: a run keeps its own copy.
"""

import dataclasses
import functools
import json
from typing import Any

import jax

# `conv` is `jax.lax.conv_general_dilated`; `ops.conv_forms` says what the others are.
_GENERAL = ("conv", "rows")
_GROUPED = ("split", "dense", "dense_rows", "merged_64", "merged_128")
_SUMS = ("sum_last", "sum_first")
LOWERINGS = (*_GENERAL, "product", *_SUMS, *_GROUPED, "space_to_depth", "space_to_batch")


@dataclasses.dataclass(frozen=True)
class ConvGeometry:
    """What a choice depends on, except the batch size and the dtype.

    Attributes:
      kernel_size: 1 or 3.
      stride: of the output.
      dilation_rate: of the kernel.
      groups: of the channels.
      in_channels: C of the input [B, H, W, C].
      features: channels of the output.
      height: H of the input.
      width: W of the input.
    """

    kernel_size: int
    stride: int
    dilation_rate: int
    groups: int
    in_channels: int
    features: int
    height: int
    width: int


def applicable_lowerings(geometry: ConvGeometry) -> tuple[str, ...]:
    """The lowerings that such a convolution has, in the order of `LOWERINGS`."""
    if geometry.groups > 1:
        legal = {*_GENERAL, *_GROUPED}
    elif geometry.kernel_size > 1:
        legal = {*_GENERAL}
    else:
        is_pixel = geometry.height == geometry.width == 1
        legal = {"conv", "product", *(_SUMS if is_pixel else ())}
    if geometry.kernel_size > 1 and geometry.dilation_rate > 1:
        legal.add("space_to_batch")
    elif geometry.kernel_size > 1 and geometry.stride > 1:
        legal.add("space_to_depth")
    return tuple(name for name in LOWERINGS if name in legal)


@dataclasses.dataclass(frozen=True)
class PassLowerings:
    """A lowering for each of the three passes of a convolution."""

    forward: str
    input_gradient: str
    kernel_gradient: str


@dataclasses.dataclass(frozen=True)
class LoweringTable:
    """Choices by geometry, measured on one kind of device.

    Attributes:
      device: the device it was measured on, for people to read.
      choices: (geometry, lowerings) pairs, each geometry once.

    Raises:
      ValueError: if a geometry is there twice or a lowering does not apply to it.
    """

    device: str
    choices: tuple[tuple[ConvGeometry, PassLowerings], ...]

    def __post_init__(self):
        if len(dict(self.choices)) < len(self.choices):
            raise ValueError(f"the table of {self.device} has a geometry twice; tune again")
        for geometry, lowerings in self.choices:
            legal = applicable_lowerings(geometry)
            for name in dataclasses.astuple(lowerings):
                if name not in legal:
                    raise ValueError(
                        f"the table of {self.device} has the lowering {name!r} for {geometry}; "
                        f"use one of {', '.join(legal)}"
                    )

    def __getitem__(self, geometry: ConvGeometry) -> PassLowerings | None:
        """The choice for a geometry; None leaves it to the platform's default."""
        return _index(self.choices).get(geometry)

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads back."""
        rows = [{**dataclasses.asdict(g), **dataclasses.asdict(c)} for g, c in self.choices]
        return {"device": self.device, "convolutions": rows}

    @classmethod
    def from_json(cls, content: Any, source: str) -> "LoweringTable":
        """Reads what `to_json` wrote.

        Args:
          content: of the file.
          source: what an error calls it, such as the file's path.

        Raises:
          ValueError: if it is not such a table.
        """
        try:
            rows = [dict(row) for row in content["convolutions"]]
            choices = tuple((_take(ConvGeometry, row), _take(PassLowerings, row)) for row in rows)
            if extra := {key for row in rows for key in row}:
                raise ValueError(f"it has unknown keys {sorted(extra)}")
            return cls(str(content["device"]), choices)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{source} is not a table of lowerings ({error}); write one by "
                "python -m regseg_jax.benchmark.convolutions --tune"
            ) from None


@functools.lru_cache
def _index(choices: tuple[tuple[ConvGeometry, PassLowerings], ...]) -> dict:
    return dict(choices)


def _take(cls: type, row: dict[str, Any]) -> Any:
    """Moves a dataclass's fields out of a row."""
    values = {field.name: row.pop(field.name) for field in dataclasses.fields(cls)}
    for field in dataclasses.fields(cls):
        if type(values[field.name]) is not field.type:
            raise ValueError(f"{field.name} is {json.dumps(values[field.name])}")
    return cls(**values)


# A context manager, `with use_lowerings(table):`; its `value` is the table in use or None.
use_lowerings = jax.make_user_context(default_value=None)
