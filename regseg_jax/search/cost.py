"""Times the training steps of both searches and that of fixed dilation rates, in turns.

python -m regseg_jax.search.cost --model=searched_decoder26 --size=256,256 --batch_size=4

All have the same batch of noise. A relaxed search computes every candidate rate.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from regseg_jax.benchmark.core import define_workload_flags, run_benchmark, time_in_turns
from regseg_jax.benchmark.jax_backend import learning_rate_fn, prepare_training
from regseg_jax.benchmark.workload import Prepared, Workload, create_workload
from regseg_jax.models import variants
from regseg_jax.models.regseg import create_model
from regseg_jax.models.searched_conv import create_continuous_conv
from regseg_jax.models.searched_model import create_search_model, searched_layers
from regseg_jax.reports.tables import format_table
from regseg_jax.runtime.arguments import parse_size
from regseg_jax.training.optimizer import create_optimizer
from regseg_jax.training.rate_search import ContinuousSearch, RelaxedSearch

METHODS = ("fixed", "continuous", "relaxed")

_MILLISECONDS = ("median_ms", "p5_ms", "p95_ms")
_NUM_CLASSES = 19
_NUM_STEPS = 1000  # of the schedule; as many are never timed


def prepare_step(workload: Workload, method: str, max_rate: int) -> Prepared:
    """Compiles the training step of a method of search, or of `fixed` rates.

    Args:
      workload: with the dilation rates that are fixed, or that a continuous search starts at.
      method: one of `METHODS`.
      max_rate: the largest candidate of a relaxed search.
    """
    tx = create_optimizer(learning_rate_fn, weight_decay=1e-4)
    model = workload.model
    if method == "continuous":
        model = model.clone(dilated_conv=create_continuous_conv)
        layers = searched_layers(model.variant.backbone)
        tx = ContinuousSearch(layers, 0.05, 0, _NUM_STEPS, tap_width=4.0).create_optimizer(tx)
    elif method == "relaxed":
        branches = len(variants.get_dilation_rates(model.variant.backbone)[0])
        model = create_search_model(
            model.variant,
            model.num_classes,
            model.dtype,
            method=method,
            num_branches=branches,
            rate=max_rate,
        )
        layers = searched_layers(model.variant.backbone)
        tx = RelaxedSearch(layers, 0.05, 0, _NUM_STEPS, temperature=0.1).create_optimizer(tx)
    workload = dataclasses.replace(workload, model=model)
    init = jax.jit(functools.partial(workload.model.init, train=False))
    variables = init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return prepare_training(workload, variables, tx)


def measure(values: flags.FlagValues) -> dict[str, Any]:
    """Times all and prints a table."""
    rates = variants.get_dilation_rates(variants.get_variant(values.model).backbone)
    if min(map(len, rates)) < 2:
        raise ValueError(
            f"--model={values.model} has blocks of one branch, which are not searched; use "
            "searched_decoder26 or a variant file of pairs"
        )
    model = create_model(values.model, _NUM_CLASSES)
    workload = create_workload("train", model, parse_size(values.size), values.batch_size)
    prepared = {name: prepare_step(workload, name, values.max_rate) for name in METHODS}
    timings = time_in_turns({name: row.run for name, row in prepared.items()}, values.repeats)
    results = {
        name: {"compile_seconds": prepared[name].compile_seconds, **timing.summarize()}
        for name, timing in timings.items()
    }
    if errors := [f"{name}: {row['error']}" for name, row in results.items() if "error" in row]:
        raise ValueError(f"not timed: {'; '.join(errors)}; try a smaller --size or --batch_size")
    for row in results.values():
        row["ratio"] = row["median_ms"] / results["fixed"]["median_ms"]
    rows = [
        (
            *(name, f"{row['compile_seconds']:.0f}"),
            *(f"{row[key]:.0f}" for key in _MILLISECONDS),
            f"{row['ratio']:.2f}",
        )
        for name, row in results.items()
    ]
    headers = ("dilation rates", "compile s", "median ms", "5%", "95%", "to fixed")
    print(format_table(headers, rows))
    settings = {"model": values.model, "size": values.size, "batch_size": values.batch_size}
    return {**settings, "max_rate": values.max_rate, "results": results}


if __name__ == "__main__":
    flags.DEFINE_integer("max_rate", 12, "The largest candidate, from 1.", lower_bound=1)
    flags.DEFINE_integer("repeats", 10, "Timed steps of each.", lower_bound=2)
    define_workload_flags("searched_decoder26", "256,256", batch_size=4)
    run_benchmark(measure, "regseg_jax.search.cost")
