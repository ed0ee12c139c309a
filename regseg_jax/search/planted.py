"""Are planted dilation rates found? A student learns those of a teacher that it only observes.

python -m regseg_jax.search.planted --data_dir=CAMVID --tries=relaxed,continuous --output=FILE.json

Teacher and student are three residual blocks of two branches on real images; the teacher's rates
are (1, 3) (2, 7) (4, 12). The student has weights of its own, which it learns together with its
rates by Adam, regressing the teacher's output. `TRIES` lists what was tried. As a run that uses
found rates does, a second student with weights of its own then has them, rounded, from the start:
its loss tells good rates from bad ones without knowing what was planted.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from jax import Array
from PIL import Image
from tqdm import tqdm

from regseg_jax.benchmark.core import run_benchmark
from regseg_jax.data import classes
from regseg_jax.data.sources.source import load_camvid
from regseg_jax.reports.tables import format_table
from regseg_jax.runtime.arguments import parse_choices, parse_seeds
from regseg_jax.search.planted_network import (
    Params,
    apply,
    create_params,
    create_relaxed_params,
    read_rates,
)
from regseg_jax.training.optimizer import create_learning_rate_fn
from regseg_jax.training.rate_search import compute_tap_width, compute_temperature

PLANTED_RATES = ((1, 3), (2, 7), (4, 12))
IMAGE_SIZE = (90, 120)
TOLERANCES = (0.1, 0.5)  # a rate is found exactly, or would be by rounding

_NUM_IMAGES = 16
_MAX_RATE = 30.0  # no rate of the student goes beyond
_NUM_LOGGED = 6  # times that a search notes its rates and loss
_AVERAGED_STEPS = 20  # of a noted loss


@dataclasses.dataclass(frozen=True)
class Try:
    """How a student looks for the rates.

    Attributes:
      method: `continuous`, `relaxed`, or `fixed`: rates that do not move.
      start: where every rate of the continuous method starts.
      num_steps: updates, an image each.
      weights_learning_rate: of Adam, falling linearly to 0, like the next.
      rates_learning_rate: of the rates, or of the logits of the candidates.
      tap_width: in pixels, of the taps at the start, see `ops.continuous_conv`.
      narrowed_at: fraction of the steps after which the taps are 1 wide.
      given_weights: whether the student has the teacher's weights, which stay.
      by_layer: whether a block's rates move in its own third of the steps only.
      resets_weights: whether a branch has a new kernel whenever its rate rounds to another.
      shared_kernel: whether the candidates of a branch share a kernel.
      temperature: of the candidates' softmax at the end; it starts at 1.
    """

    method: str = "continuous"
    start: float = 6.0
    num_steps: int = 600
    weights_learning_rate: float = 0.01
    rates_learning_rate: float = 0.1
    tap_width: float = 6.0
    narrowed_at: float = 0.5
    given_weights: bool = False
    by_layer: bool = False
    resets_weights: bool = False
    shared_kernel: bool = False
    temperature: float = 1.0


_RELAXED = Try("relaxed", rates_learning_rate=0.05)

TRIES = {
    "given_weights": Try(given_weights=True),
    "slow_weights": Try(weights_learning_rate=0.003),
    "continuous": Try(),
    "from_1": Try(start=1.0),
    "from_3": Try(start=3.0),
    "from_12": Try(start=12.0),
    "narrow_taps": Try(tap_width=1.0),
    "late_narrowing": Try(narrowed_at=0.9),
    "more_steps": Try(num_steps=2400),
    "fast_rates": Try(rates_learning_rate=1.0),
    "by_layer": Try(by_layer=True),
    "resets_weights": Try(resets_weights=True),
    "relaxed": _RELAXED,
    "relaxed_shared": dataclasses.replace(_RELAXED, shared_kernel=True),
    "relaxed_sharp": dataclasses.replace(_RELAXED, temperature=0.1),
    "relaxed_longer": dataclasses.replace(_RELAXED, temperature=0.1, num_steps=1200),
}


def load_images(data_dir: str) -> np.ndarray:
    """Images over CamVid's training split: f32[16, 90, 120, 3], mean 0, standard deviation 1.

    Raises:
      ValueError: if there is no CamVid in data_dir.
    """
    source = load_camvid(data_dir, "train", classes.CAMVID)
    height, width = IMAGE_SIZE
    images = [
        np.asarray(Image.fromarray(source[int(i)]["image"]).resize((width, height)), np.float32)
        for i in np.linspace(0, len(source) - 1, _NUM_IMAGES)
    ]
    stacked = np.stack(images)
    return (stacked - stacked.mean()) / stacked.std()


def search(
    images: np.ndarray,
    how: Try,
    *,
    seed: int,
    rates: Sequence[Sequence[float]] | None = None,
) -> dict[str, Any]:
    """Lets a student look for the planted rates.

    Args:
      images: as `load_images` returns them.
      how: it looks.
      seed: of the weights and the order of images.
      rates: where the student's start; None: all at `how.start`.

    Returns:
      `rates` as the search ended; `loss`, as a fraction of the variance of the teacher's output;
      `log`, of the steps, losses and rates on the way; `seconds`.
    """
    teacher = create_params(seed, PLANTED_RATES)
    blocks, branches = np.shape(PLANTED_RATES)
    start = rates or blocks * [branches * [how.start]]
    create = create_params
    if how.method == "relaxed":
        create = functools.partial(create_relaxed_params, shared_kernel=how.shared_kernel)
    student = create(seed if how.given_weights else seed + 1, start)
    fresh = create(seed + 2, start)
    student["stem"] = teacher["stem"]
    opt_state, train_step = _create_optimizer(how).init(student), _create_train_step(how)
    began, losses, log = time.monotonic(), [], []
    rng, images = np.random.default_rng(seed), jnp.array(images)
    for step in tqdm(range(how.num_steps), how.method, leave=False, disable=None):
        image = images[rng.integers(len(images))]
        student, opt_state, loss = train_step(
            student, opt_state, image, jnp.int32(step), teacher, fresh
        )
        losses.append(loss)
        if (step + 1) % max(how.num_steps // _NUM_LOGGED, 1) == 0 or step + 1 == how.num_steps:
            mean = float(np.mean(jax.device_get(losses[-_AVERAGED_STEPS:])))
            log.append({"step": step + 1, "loss": mean, "rates": read_rates(student).tolist()})
    ended = {"rates": log[-1]["rates"], "loss": log[-1]["loss"], "log": log}
    return {**ended, "seconds": round(time.monotonic() - began, 1)}


@functools.cache
def _create_train_step(how: Try) -> Callable[..., tuple[Params, Any, Array]]:
    """A function of student, optimizer's state, image, step, teacher and a student of new weights.

    Compiled once for all seeds.
    """
    tx, num_blocks = _create_optimizer(how), len(PLANTED_RATES)

    @jax.jit
    def train_step(
        params: Params, opt_state: Any, image: Array, step: Array, teacher: Params, fresh: Params
    ) -> tuple[Params, Any, Array]:
        expected, progress = apply(teacher, image[None]), step / how.num_steps
        if how.method == "relaxed":
            sharpness = compute_temperature(how.temperature, progress)
        else:
            sharpness = compute_tap_width(how.tap_width, progress, narrowed_at=how.narrowed_at)

        def compute_loss(params: Params) -> Array:
            error = jnp.square(apply(params, image[None], sharpness) - expected).mean()
            return error / jnp.var(expected)

        loss, grads = jax.value_and_grad(compute_loss)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        if how.by_layer:
            moves = jnp.arange(num_blocks) == (num_blocks * progress).astype(int)
            updates["rates"] *= moves.reshape(-1, *(updates["rates"].ndim - 1) * [1])
        moved = optax.apply_updates(params, updates)
        if how.method == "continuous":
            moved["rates"] = jnp.clip(moved["rates"], 1, _MAX_RATE)
        if how.resets_weights:
            changed = jnp.round(moved["rates"]) != jnp.round(params["rates"])
            changed = changed[..., None, None, None, None]
            moved["kernels"] = jnp.where(changed, fresh["kernels"], moved["kernels"])
        return moved, opt_state, loss

    return train_step


def _create_optimizer(how: Try) -> optax.GradientTransformation:
    labels = {"stem": "fixed", "rates": "fixed" if how.method == "fixed" else "rates"}
    labels |= dict.fromkeys(("kernels", "mixing"), "fixed" if how.given_weights else "weights")
    decay = create_learning_rate_fn(1.0, how.num_steps, 0, power=1.0)
    return optax.partition(
        {
            "rates": optax.adam(lambda step: how.rates_learning_rate * decay(step)),
            "weights": optax.adam(lambda step: how.weights_learning_rate * decay(step)),
            "fixed": optax.set_to_zero(),
        },
        labels,
    )


def measure_distances(rates: np.ndarray, *, any_order: bool) -> np.ndarray:
    """How far rates are from the planted ones, f64[3, 2]; branches may be swapped if any_order."""
    return np.abs((np.sort(rates, 1) if any_order else rates) - np.array(PLANTED_RATES))


def run_try(images: np.ndarray, name: str, seed: int) -> dict[str, Any]:
    """Searches as `TRIES` says, and trains another student with what was found.

    Returns:
      What `search` does, with how many rates are `found` within each of `TOLERANCES` (with free
      weights the branches of a block may be swapped), their mean `distance` from the planted ones,
      and `loss_from_scratch`.
    """
    how = TRIES[name]
    result = search(images, how, seed=seed)
    rates = np.array(result["rates"])
    distances = measure_distances(rates, any_order=not how.given_weights)
    return {
        "try": name,
        "seed": seed,
        "found": {str(t): int((distances <= t).sum()) for t in TOLERANCES},
        "distance": round(float(distances.mean()), 3),
        "loss_from_scratch": train_from_scratch(images, rates.round().tolist(), seed),
        **result,
    }


def train_from_scratch(
    images: np.ndarray, rates: Sequence[Sequence[float]], seed: int, num_steps: int = 600
) -> float:
    """The loss that a student with these rates, which stay, ends at."""
    fixed = Try("fixed", num_steps=num_steps, tap_width=1.0)
    return search(images, fixed, seed=seed, rates=rates)["loss"]


def measure(values: flags.FlagValues) -> dict[str, Any]:
    """Tries everything that the flags name with every seed and prints a table."""
    names = parse_choices(values.tries, "tries", list(TRIES))
    seeds = parse_seeds(values.seeds)
    images = load_images(values.data_dir)
    results = []
    for name in names:
        for seed in seeds:
            results.append(run_try(images, name, seed))
            print({key: x for key, x in results[-1].items() if key != "log"}, flush=True)
    planted = [train_from_scratch(images, PLANTED_RATES, seed) for seed in seeds]
    headers = ("try", "seed", *(f"within {t}" for t in TOLERANCES), "distance", "loss", "retrained")
    rows = [
        (
            *(r["try"], r["seed"]),
            *(f"{n} of 6" for n in r["found"].values()),
            *(f"{r[key]:.3f}" for key in ("distance", "loss", "loss_from_scratch")),
        )
        for r in results
    ]
    print(format_table(headers, rows))
    print(f"retrained with the planted rates: {', '.join(f'{loss:.3f}' for loss in planted)}")
    tries = {name: dataclasses.asdict(TRIES[name]) for name in names}
    planted = dict(zip(seeds, planted, strict=True))
    settings = {"planted": PLANTED_RATES, "tries": tries, "planted_from_scratch": planted}
    return {**settings, "results": results}


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "CamVid, either edition.")
    flags.DEFINE_string("tries", ",".join(TRIES), "Names of tries, with commas between.")
    flags.DEFINE_string("seeds", "0,1,2", "Of weights and the order of images.")
    flags.mark_flags_as_required(["data_dir"])
    run_benchmark(measure, "regseg_jax.search.planted")
