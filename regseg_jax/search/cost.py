"""Times the training step of a search beside that of fixed rates, in turns within one run.

python -m regseg_jax.search.cost --model=searched_decoder26 --size=256,256 --batch_size=4

Both have the same rates, weights and batch of noise.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import flags
from tqdm import tqdm

from regseg_jax.benchmark.timing import summarize
from regseg_jax.benchmark.workload import Workload, create_workload
from regseg_jax.models import variants
from regseg_jax.models.regseg import create_model
from regseg_jax.reports.tables import format_table
from regseg_jax.runtime.arguments import parse_size
from regseg_jax.runtime.command import run_command
from regseg_jax.runtime.environment import describe_environment
from regseg_jax.runtime.files import check_new, write_json
from regseg_jax.search.rate_search import RateSearch, searched_layers
from regseg_jax.search.searched_conv import create_dilated_conv
from regseg_jax.training.losses import cross_entropy
from regseg_jax.training.optimizer import create_learning_rate_fn, create_optimizer
from regseg_jax.training.sharding import single_device_mesh
from regseg_jax.training.steps import create_train_step
from regseg_jax.training.train_state import create_train_state

_NAMES = ("fixed", "searched")
_MILLISECONDS = ("median_ms", "p5_ms", "p95_ms")
_NUM_CLASSES = 19
_NUM_STEPS = 1000  # of the schedules; as many are never timed


def prepare_step(workload: Workload, *, searched: bool) -> tuple[Callable[[], None], float]:
    """Compiles the training step, of real rates or of fixed ones.

    Returns:
      A function that takes a step and waits for it, and the seconds that compiling took.
    """
    learning_rate_fn = create_learning_rate_fn(0.05, _NUM_STEPS, 0)
    model, tx = workload.model, create_optimizer(learning_rate_fn, 1e-4)
    if searched:
        model = model.clone(dilated_conv=create_dilated_conv)
        layers = searched_layers(model.variant.backbone)
        tx = RateSearch(layers, 0.05, 0, _NUM_STEPS, tap_width=4.0).create_optimizer(tx)
    step = create_train_step(
        model,
        tx,
        learning_rate_fn,
        cross_entropy,
        lambda images, labels, rng: (images, labels),
        jax.random.key(0),
        single_device_mesh(),
    )
    state = jax.jit(lambda rng: create_train_state(model, tx, rng))(jax.random.key(0))
    batch = {"image": jnp.array(workload.images), "label": jnp.array(workload.labels)}
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    seconds = time.perf_counter() - start

    def run() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(compiled(state, batch))

    return run, seconds


def main(argv: list[str]) -> None:
    """Times both and prints a table."""
    if argv:
        raise ValueError(f"unexpected arguments {argv}; flags start with --")
    values = flags.FLAGS
    check_new(values.output)
    rates = variants.get_dilation_rates(variants.get_variant(values.model).backbone)
    if min(map(len, rates)) < 2:
        raise ValueError(
            f"--model={values.model} has blocks of one branch, which are not searched; use "
            "searched_decoder26 or a variant file of pairs"
        )
    model = create_model(values.model, _NUM_CLASSES)
    workload = create_workload("train", model, parse_size(values.size), values.batch_size)
    prepared = {name: prepare_step(workload, searched=name == "searched") for name in _NAMES}
    times = {name: [] for name in _NAMES}
    for i in tqdm(range(values.repeats + 2), desc="timing", leave=False, disable=None):
        for name, (run, _) in prepared.items():
            start = time.perf_counter()
            run()
            if i >= 2:  # the first two warm up
                times[name].append(time.perf_counter() - start)
    results = {
        name: {"compile_seconds": prepared[name][1], **summarize(times[name])} for name in _NAMES
    }
    ratio = results["searched"]["median_ms"] / results["fixed"]["median_ms"]
    rows = [
        (name, f"{r['compile_seconds']:.0f}", *(f"{r[k]:.0f}" for k in _MILLISECONDS))
        for name, r in results.items()
    ]
    print(format_table(("rates", "compile s", "median ms", "5%", "95%"), rows))
    print(f"a training step with searched rates costs {ratio:.2f} times one with fixed rates")
    if values.output:
        content = {"model": values.model, "size": values.size, "batch_size": values.batch_size}
        content |= {"environment": describe_environment(), "results": results, "ratio": ratio}
        write_json(values.output, content)


if __name__ == "__main__":
    flags.DEFINE_string("model", "searched_decoder26", "A model whose blocks all have branches.")
    flags.DEFINE_string("size", "256,256", "HEIGHT,WIDTH of the crops.")
    flags.DEFINE_integer("batch_size", 4, "Crops a step.", lower_bound=1)
    flags.DEFINE_integer("repeats", 10, "Timed steps of each.", lower_bound=2)
    flags.DEFINE_string("output", None, "A new JSON file for the results.")
    run_command(main, "regseg_jax.search.cost")
