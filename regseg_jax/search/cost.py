"""Times the training step of a search and that of fixed dilation rates, in turns within one run.

python -m regseg_jax.search.cost --model=searched_decoder26 --size=256,256 --batch_size=4

Both have the same dilation rates, weights and batch of noise.
"""

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
from regseg_jax.models.searched_model import searched_layers
from regseg_jax.reports.tables import format_table
from regseg_jax.runtime.arguments import parse_size
from regseg_jax.training.optimizer import create_optimizer
from regseg_jax.training.rate_search import ContinuousSearch

_MILLISECONDS = ("median_ms", "p5_ms", "p95_ms")
_NUM_CLASSES = 19
_NUM_STEPS = 1000  # of the schedule; as many are never timed


def prepare_step(workload: Workload, *, searched: bool) -> Prepared:
    """Compiles the training step, of real dilation rates or of fixed ones."""
    tx = create_optimizer(learning_rate_fn, weight_decay=1e-4)
    if searched:
        model = workload.model.clone(dilated_conv=create_continuous_conv)
        workload = Workload("train", model, workload.images, workload.labels)
        layers = searched_layers(model.variant.backbone)
        tx = ContinuousSearch(layers, 0.05, 0, _NUM_STEPS, tap_width=4.0).create_optimizer(tx)
    init = jax.jit(functools.partial(workload.model.init, train=False))
    variables = init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return prepare_training(workload, variables, tx)


def measure(values: flags.FlagValues) -> dict[str, Any]:
    """Times both and prints a table."""
    rates = variants.get_dilation_rates(variants.get_variant(values.model).backbone)
    if min(map(len, rates)) < 2:
        raise ValueError(
            f"--model={values.model} has blocks of one branch, which are not searched; use "
            "searched_decoder26 or a variant file of pairs"
        )
    model = create_model(values.model, _NUM_CLASSES)
    workload = create_workload("train", model, parse_size(values.size), values.batch_size)
    prepared = {
        name: prepare_step(workload, searched=name == "searched") for name in ("fixed", "searched")
    }
    timings = time_in_turns({name: row.run for name, row in prepared.items()}, values.repeats)
    results = {
        name: {"compile_seconds": prepared[name].compile_seconds, **timing.summarize()}
        for name, timing in timings.items()
    }
    if errors := [f"{name}: {row['error']}" for name, row in results.items() if "error" in row]:
        raise ValueError(f"not timed: {'; '.join(errors)}; try a smaller --size or --batch_size")
    ratio = results["searched"]["median_ms"] / results["fixed"]["median_ms"]
    rows = [
        (name, f"{row['compile_seconds']:.0f}", *(f"{row[key]:.0f}" for key in _MILLISECONDS))
        for name, row in results.items()
    ]
    print(format_table(("dilation rates", "compile s", "median ms", "5%", "95%"), rows))
    print(f"a training step with searched rates costs {ratio:.2f} times one with fixed rates")
    settings = {"model": values.model, "size": values.size, "batch_size": values.batch_size}
    return {**settings, "results": results, "ratio": ratio}


if __name__ == "__main__":
    flags.DEFINE_integer("repeats", 10, "Timed steps of each.", lower_bound=2)
    define_workload_flags("searched_decoder26", "256,256", batch_size=4)
    run_benchmark(measure, "regseg_jax.search.cost")
