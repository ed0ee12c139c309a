"""What all benchmarks need: the command, its flags, timing in turns, and the compiler's plan."""

import functools
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from absl import flags
from tqdm import tqdm

from regseg_jax.models.variants import get_variant
from regseg_jax.runtime.arguments import parse_size
from regseg_jax.runtime.command import run_command
from regseg_jax.runtime.environment import describe_environment
from regseg_jax.runtime.files import check_new, write_json
from regseg_jax.runtime.timing import describe_error, summarize

NUM_WARMUP = 3


def define_workload_flags(model: str, size: str, batch_size: int) -> None:
    """Defines --model, --size and --batch_size with these defaults."""
    flags.DEFINE_string("model", model, "BACKBONE_DECODER, an alias, or a variant file.")
    flags.DEFINE_string("size", size, "HEIGHT,WIDTH of the images.")
    flags.DEFINE_integer("batch_size", batch_size, "Images at once.", lower_bound=1)


def run_benchmark(measure: Callable[[flags.FlagValues], dict[str, Any]], name: str) -> None:
    """Runs a benchmark as a command, with --output for a JSON file of its results.

    Args:
      measure: takes the flags, prints its tables, and returns the results as plain data. They
        are saved together with hardware, versions, date and command.
      name: of the command's module.
    """
    flags.DEFINE_string("output", None, "A new JSON file for the results; else none.")

    run_command(functools.partial(_measure_and_save, measure), name)


def _measure_and_save(
    measure: Callable[[flags.FlagValues], dict[str, Any]], argv: Sequence[str]
) -> None:
    values = flags.FLAGS
    if argv:
        raise ValueError(f"unexpected arguments {argv}; flags start with --")
    check_new(values.output)
    if "model" in values:  # a bad value shows before long work
        get_variant(values.model)
        parse_size(values.size)
    environment = describe_environment()  # before: how busy the machine was without this
    results = measure(values)
    if values.output:
        write_json(values.output, {**environment, **results})
        print(f"wrote {values.output}")


class Timing(NamedTuple):
    """How long the runs of one thing took.

    Attributes:
      seconds: of each timed run.
      error: the reason, if a run failed.
    """

    seconds: list[float]
    error: str | None = None

    def summarize(self) -> dict[str, Any]:
        """`median_ms`, `p5_ms` and `p95_ms`, or the `error`."""
        return {"error": self.error} if self.error else summarize(self.seconds)


def time_in_turns(
    runs: Mapping[Hashable, Callable[[], Any]], num_runs: int, *, show_progress: bool = True
) -> dict[Any, Timing]:
    """Times several things in turns, so that a machine's moods meet all of them alike.

    Args:
      runs: each does its work once and waits for the end. One that fails is left out from then
        on; the others go on.
      num_runs: timed turns, at least 2, after `NUM_WARMUP` that are not.
      show_progress: whether a bar is shown.
    """
    seconds, errors = {name: [] for name in runs}, {}
    turns = range(NUM_WARMUP + num_runs)
    for turn in tqdm(turns, "timing", leave=False, disable=None if show_progress else True):
        for name, run in runs.items():
            if name in errors:
                continue
            start = time.perf_counter()
            try:
                run()
            except Exception as error:  # out of memory, say
                errors[name] = describe_error(error)
            if turn >= NUM_WARMUP:
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing(seconds[name], errors.get(name)) for name in runs}


def plan_memory(compiled: jax.stages.Compiled) -> dict[str, int] | None:
    """Bytes on a device by the compiler's plan; None if it tells nothing.

    Returns:
      `arguments`, `output`, `temporary`, `reused` (arguments that become outputs), and `total`.
    """
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    memory = {
        "arguments": plan.argument_size_in_bytes,
        "output": plan.output_size_in_bytes,
        "temporary": plan.temp_size_in_bytes,
        "reused": plan.alias_size_in_bytes,
    }
    return {**memory, "total": sum(memory.values()) - 2 * memory["reused"]}
