"""Times each grouped convolution of a model by itself, in every lowering of it.

python -m regseg_jax.benchmark.convolutions --model=exp48_decoder26 --size=256,256 --batch_size=4

XLA has been slow at dilated and at grouped convolutions on one platform or another, and more so at
their gradients: look here before trusting a new device or version of XLA.
"""

import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import flags
from tqdm import tqdm

from regseg_jax.benchmark.timing import summarize
from regseg_jax.config import PRECISIONS
from regseg_jax.models import variants
from regseg_jax.ops.conv import grouped_conv
from regseg_jax.ops.lowerings import applicable_lowerings
from regseg_jax.reports.tables import format_table
from regseg_jax.runtime.arguments import parse_size
from regseg_jax.runtime.command import run_command
from regseg_jax.runtime.environment import describe_environment
from regseg_jax.runtime.files import check_new, write_json

LOWERINGS = applicable_lowerings(kernel_size=3, groups=2)
PASSES = ("forward", "input gradient", "kernel gradient", "both gradients")
_NUM_WARMUP = 2


@dataclasses.dataclass(frozen=True)
class GroupedConv:
    """One grouped 3x3 convolution.

    Attributes:
      shape: of its input, [B, H, W, C].
      groups: of its channels.
      stride: of its output.
      dilation_rate: of its kernel.
    """

    shape: tuple[int, int, int, int]
    groups: int
    stride: int
    dilation_rate: int


def list_grouped_convs(
    backbone: variants.Backbone, size: tuple[int, int], batch_size: int
) -> list[GroupedConv]:
    """The different grouped convolutions of a backbone, in the order of computation.

    Args:
      backbone: with a stem of stride 2 before its stages.
      size: height and width of the images.
      batch_size: images at once.
    """
    height, width = (-(-side // 2) for side in size)
    found = {}
    for _, blocks in backbone.stages:
        for block in blocks:
            channels = block.out_channels // len(block.dilation_rates)
            shape = (batch_size, height, width, channels)
            for rate in block.dilation_rates:
                groups = channels // backbone.group_width
                found[GroupedConv(shape, groups, block.stride, rate)] = None
            height, width = (-(-side // block.stride) for side in (height, width))
    return list(found)


def prepare_passes(
    conv: GroupedConv, lowering: str, dtype: jnp.dtype
) -> dict[str, Callable[[], None]]:
    """Compiled functions that compute the convolution or one of its gradients and wait for it."""
    channels = conv.shape[3]
    rngs = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(rngs[0], conv.shape, dtype)
    kernel = jax.random.normal(rngs[1], (3, 3, channels // conv.groups, channels), dtype)
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
        lambda x, kernel: jax.vjp(apply, x, kernel)[1](dy),
    )
    compiled = [jax.jit(function).lower(x, kernel).compile() for function in functions]
    return {
        name: functools.partial(lambda run: jax.block_until_ready(run(x, kernel)), run)
        for name, run in zip(PASSES, compiled, strict=True)
    }


def measure(conv: GroupedConv, dtype: jnp.dtype, num_runs: int) -> list[dict]:
    """Times every pass in every lowering, in turns.

    Returns:
      A record for each pass: the convolution, `pass`, and times by lowering.
    """
    prepared = {lowering: prepare_passes(conv, lowering, dtype) for lowering in LOWERINGS}
    records = []
    for name in PASSES:
        seconds = {lowering: [] for lowering in LOWERINGS}
        for turn in range(_NUM_WARMUP + num_runs):
            for lowering in LOWERINGS:
                start = time.perf_counter()
                prepared[lowering][name]()
                if turn >= _NUM_WARMUP:
                    seconds[lowering].append(time.perf_counter() - start)
        times = {lowering: summarize(seconds[lowering]) for lowering in LOWERINGS}
        records.append({**dataclasses.asdict(conv), "pass": name, "times": times})
    return records


def format_records(records: list[dict]) -> str:
    """A line for each convolution: median milliseconds of each lowering, pass by pass."""
    headers = ["input", "groups", "stride", "rate"]
    headers += [f"{name}: {lowering}" for name in PASSES for lowering in LOWERINGS]
    rows = []
    for first in range(0, len(records), len(PASSES)):
        conv = records[first]
        times = [
            f"{record['times'][lowering]['median_ms']:.2f}"
            for record in records[first : first + len(PASSES)]
            for lowering in LOWERINGS
        ]
        shape = " x ".join(map(str, conv["shape"]))
        rows.append((shape, *(str(conv[k]) for k in ("groups", "stride", "dilation_rate")), *times))
    return "median milliseconds\n" + format_table(headers, rows)


def main(argv: list[str]) -> None:
    """Times what the flags name and prints the table."""
    if argv:
        raise ValueError(f"unexpected arguments {argv}; flags start with --")
    values = flags.FLAGS
    check_new(values.output)
    size, backbone = parse_size(values.size), variants.get_variant(values.model).backbone
    convs = list_grouped_convs(backbone, size, values.batch_size)
    records = []
    for conv in tqdm(convs, desc="timing", unit="convolution", leave=False, disable=None):
        records += measure(conv, PRECISIONS[values.precision], values.num_runs)
    print(format_records(records))
    if values.output:
        settings = {"model": values.model, "precision": values.precision}
        write_json(values.output, {**describe_environment(), **settings, "records": records})
        print(f"wrote {values.output}")


if __name__ == "__main__":
    flags.DEFINE_string("model", "exp48_decoder26", "BACKBONE_DECODER, or a variant file.")
    flags.DEFINE_string("size", "256,256", "HEIGHT,WIDTH of the images.")
    flags.DEFINE_integer("batch_size", 4, "Images at once.", lower_bound=1)
    flags.DEFINE_enum("precision", "float32", list(PRECISIONS), "The computation's dtype.")
    flags.DEFINE_integer("num_runs", 10, "Timed runs of each.", lower_bound=2)
    flags.DEFINE_string("output", None, "A new JSON file for the results.")
    run_command(main, "regseg_jax.benchmark.convolutions")
