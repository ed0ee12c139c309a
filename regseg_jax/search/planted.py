"""Are planted dilation rates found? A student learns those of a teacher that it only observes.

python -m regseg_jax.search.planted --data_dir=CAMVID --starts=1,6,12 --output=planted.json

Teacher and student are three residual blocks of two branches on real images; the teacher's rates
are (1, 3) (2, 7) (4, 12). The student has the teacher's weights, or with --free_weights its own,
and regresses the teacher's output by Adam. With --tap_width above 1 the student's taps start that
wide and narrow to 1 over the first half of the steps.
"""

import functools
import time
from collections.abc import Sequence
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
from regseg_jax.ops.continuous_conv import continuous_conv
from regseg_jax.ops.conv import grouped_conv
from regseg_jax.reports.tables import format_table
from regseg_jax.training.optimizer import create_learning_rate_fn
from regseg_jax.training.rate_search import compute_tap_width

PLANTED_RATES = ((1, 3), (2, 7), (4, 12))
IMAGE_SIZE = (90, 120)
TOLERANCES = (0.1, 0.5)  # a rate is found exactly, or would be by rounding

_NUM_IMAGES = 16
_BATCH_SIZE = 2
_CHANNELS = 16
_GROUP_WIDTH = 8  # one group a branch
_RATES_LEARNING_RATE = 0.1
_WEIGHTS_LEARNING_RATE = 0.003
_MAX_RATE = 30.0  # no rate of the student goes beyond

Params = dict[str, Array]


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


def create_params(seed: int, rates: Sequence[Sequence[float]]) -> Params:
    """Random weights, and the rates f32[3, 2]."""
    keys = jax.random.split(jax.random.key(seed), 3)
    blocks, branches = len(rates), len(rates[0])

    def uniform(key: Array, shape: tuple[int, ...], fan_in: int) -> Array:
        return jax.random.uniform(key, shape, minval=-1, maxval=1) * fan_in**-0.5

    kernels = (blocks, branches, 3, 3, _GROUP_WIDTH, _CHANNELS // branches)
    return {
        "stem": uniform(keys[0], (3, 3, 3, _CHANNELS), 27),
        "kernels": uniform(keys[1], kernels, 9 * _GROUP_WIDTH),
        "mixing": uniform(keys[2], (blocks, _CHANNELS, _CHANNELS), _CHANNELS),
        "rates": jnp.array(rates, jnp.float32),
    }


def apply(params: Params, images: Array, tap_width: Array | float) -> Array:
    """Strided stem, blocks of dilated 3x3, norm, ReLU, 1x1 and shortcut: [B, H/2, W/2, 16]."""
    x = _normalize(grouped_conv(images, params["stem"], stride=2))
    for kernels, mixing, rates in zip(
        params["kernels"], params["mixing"], params["rates"], strict=True
    ):
        parts = jnp.split(x, len(rates), axis=-1)
        branches = [
            continuous_conv(part, kernel, rate, tap_width=tap_width)
            for part, kernel, rate in zip(parts, kernels, rates, strict=True)
        ]
        y = jax.nn.relu(_normalize(jnp.concatenate(branches, -1)))
        x = x + _normalize(y @ mixing)
    return x


def _normalize(x: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.square(x).mean((0, 1, 2)) + 1e-5)


def search(
    images: np.ndarray,
    start: float,
    *,
    seed: int,
    num_steps: int,
    free_weights: bool,
    tap_width: float,
) -> dict[str, Any]:
    """Lets a student whose rates all begin at start look for the planted ones.

    Returns:
      `rates` as the search ended, how many of them are `found` within each of `TOLERANCES` (with
      free weights the branches of a block may be swapped), `loss` as a fraction of the variance
      of the teacher's output, and `seconds`.
    """
    teacher = create_params(seed, PLANTED_RATES)
    blocks, branches = np.shape(PLANTED_RATES)
    student = create_params(seed + 1 if free_weights else seed, blocks * [branches * [start]])
    student["stem"] = teacher["stem"]
    labels = dict.fromkeys(student, "weights" if free_weights else "fixed")
    labels |= {"stem": "fixed", "rates": "rates"}
    decay = create_learning_rate_fn(1.0, num_steps, 0, power=1.0)
    tx = optax.partition(
        {
            "rates": optax.adam(lambda step: _RATES_LEARNING_RATE * decay(step)),
            "weights": optax.adam(lambda step: _WEIGHTS_LEARNING_RATE * decay(step)),
            "fixed": optax.set_to_zero(),
        },
        labels,
    )

    @jax.jit
    def train_step(params: Params, opt_state: Any, batch: tuple, step: Array) -> tuple:
        images, expected = batch
        width = compute_tap_width(tap_width, step / num_steps)

        def compute_loss(params: Params) -> Array:
            error = jnp.square(apply(params, images, width) - expected).mean()
            return error / jnp.var(expected)

        loss, grads = jax.value_and_grad(compute_loss)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return params | {"rates": jnp.clip(params["rates"], 1, _MAX_RATE)}, opt_state, loss

    began, opt_state, losses = time.monotonic(), tx.init(student), []
    rng = np.random.default_rng(seed)
    images, targets = jnp.array(images), jax.jit(apply)(teacher, images, 1.0)
    for step in tqdm(range(num_steps), desc=f"from {start:g}", leave=False, disable=None):
        drawn = rng.choice(len(images), _BATCH_SIZE, replace=False)
        batch = images[drawn], targets[drawn]
        student, opt_state, loss = train_step(student, opt_state, batch, jnp.int32(step))
        losses.append(loss)
    rates = np.asarray(student["rates"], np.float64)
    return {
        "start": start,
        "tap_width": tap_width,
        "free_weights": free_weights,
        "rates": rates.round(3).tolist(),
        "found": {str(t): count_found(rates, t, any_order=free_weights) for t in TOLERANCES},
        "loss": float(np.mean(jax.device_get(losses[-20:]))),
        "seconds": round(time.monotonic() - began, 1),
    }


def count_found(rates: np.ndarray, tolerance: float, *, any_order: bool) -> int:
    """How many of the six planted rates are met within tolerance; branches swapped if any_order."""
    distances = np.abs((np.sort(rates, 1) if any_order else rates) - np.array(PLANTED_RATES))
    return int((distances <= tolerance).sum())


def measure(values: flags.FlagValues) -> dict[str, Any]:
    """Searches from every start and prints a table."""
    try:
        starts = [float(start) for start in values.starts]
    except ValueError:
        starts = []
    if not starts or not all(1 <= start <= _MAX_RATE for start in starts):
        raise ValueError(f"--starts is {values.starts}; give rates from 1 to {_MAX_RATE:g}")
    run_search = functools.partial(
        search,
        load_images(values.data_dir),
        seed=values.seed,
        num_steps=values.steps,
        free_weights=values.free_weights,
        tap_width=values.tap_width,
    )
    results = []
    for start in starts:
        results.append(run_search(start))
        print(results[-1], flush=True)
    rows = [
        (f"{r['start']:g}", r["rates"], *(f"{n} of 6" for n in r["found"].values()), r["loss"])
        for r in results
    ]
    headers = ("from", "rates", *(f"within {t}" for t in TOLERANCES), "loss")
    print(format_table(headers, rows))
    settings = {"planted": PLANTED_RATES, "steps": values.steps, "seed": values.seed}
    return {**settings, "results": results}


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "CamVid, either edition.")
    flags.DEFINE_list("starts", ["1"], "Rates that all branches start from, a search each.")
    flags.DEFINE_integer("steps", 600, "Updates of a search.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of weights and batches.")
    flags.DEFINE_bool("free_weights", False, "The student learns weights of its own too.")
    flags.DEFINE_float("tap_width", 1.0, "How wide the taps start, in pixels.", lower_bound=1.0)
    flags.mark_flags_as_required(["data_dir"])
    run_benchmark(measure, "regseg_jax.search.planted")
