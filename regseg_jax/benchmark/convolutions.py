"""Times each convolution of a model by itself, in every lowering of it.

python -m regseg_jax.benchmark.convolutions --model=exp48_decoder26 --size=256,256 --batch_size=4

XLA has been slow at dilated and at grouped convolutions on one platform or another, and more so at
their gradients: look here before trusting a new device or version of XLA. With --tune all
convolutions are timed, not the grouped ones alone, and the JSON file of --output has the fastest
lowering of each pass: a table for `config.conv_lowerings`. It holds for maps of this --size, and is
best made on an idle device, at the crops, batch (of one device) and precision of the run.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import flags
from tqdm import tqdm

from regseg_jax.benchmark.core import (
    Timing,
    define_workload_flags,
    run_benchmark,
    time_in_turns,
)
from regseg_jax.config import PRECISIONS
from regseg_jax.models.layers import Conv
from regseg_jax.models.regseg import RegSeg, create_model
from regseg_jax.ops.conv import grouped_conv
from regseg_jax.ops.lowerings import (
    LOWERINGS,
    ConvGeometry,
    LoweringTable,
    PassLowerings,
    applicable_lowerings,
)
from regseg_jax.reports.tables import format_table
from regseg_jax.runtime.arguments import parse_size

PASSES = tuple(field.name for field in dataclasses.fields(PassLowerings))
_HEADERS = ("input", "kernel", "groups", "stride", "rate", "pass", *LOWERINGS, "fastest")
_NUM_CLASSES = 19


@dataclasses.dataclass(frozen=True)
class Record:
    """What was measured of one pass of one convolution.

    Attributes:
      geometry: of the convolution.
      pass_name: one of `PASSES`.
      timings: by lowering.
    """

    geometry: ConvGeometry
    pass_name: str
    timings: dict[str, Timing]

    @property
    def fastest(self) -> str | None:
        """The lowering of the smallest median; None if all failed."""
        medians = {
            name: statistics.median(timing.seconds)
            for name, timing in self.timings.items()
            if not timing.error
        }
        return min(medians, key=medians.get, default=None)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        times = {name: timing.summarize() for name, timing in self.timings.items()}
        return {**dataclasses.asdict(self.geometry), "pass": self.pass_name, "times": times}


def list_convs(model: RegSeg, size: tuple[int, int]) -> list[ConvGeometry]:
    """The different convolutions of a model, in the order of computation; nothing is computed."""
    found = {}

    def record(next_call, args, kwargs, context: nn.module.InterceptorContext):
        conv = context.module
        if isinstance(conv, Conv) and context.method_name == "__call__":
            _, height, width, channels = args[0].shape
            sizes = conv.kernel_size, conv.stride, conv.dilation_rate
            groups = channels // (conv.group_width or channels)
            found[ConvGeometry(*sizes, groups, channels, conv.features, height, width)] = None
        return next_call(*args, **kwargs)

    # Defined here, because JAX would remember the trace of a function that it has met before.
    def init():
        return model.init(jax.random.key(0), jnp.zeros((1, *size, 3)), train=False)

    with nn.intercept_methods(record):
        jax.eval_shape(init)
    return list(found)


def prepare_passes(
    conv: ConvGeometry, batch_size: int, lowering: str, dtype: jnp.dtype
) -> dict[str, Callable[[], None]]:
    """Compiled functions that compute the convolution or one of its gradients and wait for it."""
    rngs = jax.random.split(jax.random.key(0), 3)
    sides = 2 * (conv.kernel_size,)
    kernel_shape = (*sides, conv.in_channels // conv.groups, conv.features)
    x = jax.random.normal(rngs[0], (batch_size, conv.height, conv.width, conv.in_channels), dtype)
    kernel = jax.random.normal(rngs[1], kernel_shape, dtype)
    apply = functools.partial(
        grouped_conv,
        stride=conv.stride,
        dilation_rate=conv.dilation_rate,
        groups=conv.groups,
        lowering=lowering,
    )
    dy = jax.random.normal(rngs[2], jax.eval_shape(apply, x, kernel).shape, dtype)
    functions = (
        apply,
        lambda x, kernel: jax.vjp(lambda x: apply(x, kernel), x)[1](dy),
        lambda x, kernel: jax.vjp(lambda kernel: apply(x, kernel), kernel)[1](dy),
    )
    compiled = [jax.jit(function).lower(x, kernel).compile() for function in functions]
    return {
        name: functools.partial(lambda run: jax.block_until_ready(run(x, kernel)), run)
        for name, run in zip(PASSES, compiled, strict=True)
    }


def time_conv(conv: ConvGeometry, batch_size: int, dtype: jnp.dtype, num_runs: int) -> list[Record]:
    """Times every pass in every lowering that applies, in turns."""
    names = applicable_lowerings(conv)
    prepared = {name: prepare_passes(conv, batch_size, name, dtype) for name in names}
    records = []
    for pass_name in PASSES:
        runs = {name: prepared[name][pass_name] for name in names}
        timings = time_in_turns(runs, num_runs, show_progress=False)
        records.append(Record(conv, pass_name, timings))
    return records


def format_records(records: list[Record]) -> str:
    """A line for each pass: median milliseconds of each lowering."""
    rows = []
    for record in records:
        conv = record.geometry
        sides = f"{conv.height} x {conv.width} x {conv.in_channels}"
        sizes = (conv.kernel_size, conv.groups, conv.stride, conv.dilation_rate)
        times = [_format_time(record.timings.get(name)) for name in LOWERINGS]
        rows.append((sides, *sizes, record.pass_name, *times, record.fastest or ""))
    return "median milliseconds\n" + format_table(_HEADERS, rows)


def _format_time(timing: Timing | None) -> str:
    if timing is None:
        return ""
    return "failed" if timing.error else f"{timing.summarize()['median_ms']:.2f}"


def choose_lowerings(records: list[Record], device: str) -> LoweringTable:
    """The fastest lowering of every pass; convolutions that failed are left to the default."""
    fastest = {}
    for record in records:
        fastest.setdefault(record.geometry, {})[record.pass_name] = record.fastest
    choices = (
        (geometry, PassLowerings(**passes))
        for geometry, passes in fastest.items()
        if None not in passes.values()
    )
    return LoweringTable(device, tuple(choices))


def measure(values: flags.FlagValues) -> dict[str, Any]:
    """Times what the flags name and prints the table."""
    if values.tune and not values.output:
        raise ValueError("--tune writes a table; add --output=FILE")
    model = create_model(values.model, _NUM_CLASSES)
    convs = list_convs(model, parse_size(values.size))
    if not values.tune:
        convs = [conv for conv in convs if conv.groups > 1]
    records = []
    for conv in tqdm(convs, desc="timing", unit="convolution", leave=False, disable=None):
        dtype = PRECISIONS[values.precision]
        records += time_conv(conv, values.batch_size, dtype, values.num_runs)
    print(format_records(records))
    settings = {
        **{"model": values.model, "size": values.size, "batch_size": values.batch_size},
        **{"precision": values.precision, "records": [record.to_json() for record in records]},
    }
    if not values.tune:
        return settings
    return {**choose_lowerings(records, jax.devices()[0].device_kind).to_json(), **settings}


if __name__ == "__main__":
    flags.DEFINE_enum("precision", "float32", list(PRECISIONS), "The computation's dtype.")
    flags.DEFINE_integer("num_runs", 10, "Timed runs of each.", lower_bound=2)
    flags.DEFINE_bool("tune", False, "Write a table of the fastest for config.conv_lowerings.")
    define_workload_flags("exp48_decoder26", "256,256", batch_size=4)
    run_benchmark(measure, "regseg_jax.benchmark.convolutions")
