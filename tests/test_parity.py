"""Whole models against outputs of the author's PyTorch code (the fixture `golden/`).

Its numbers were computed in float64 with every weight set by `golden/fill.py`; the tolerances
are a few times what PyTorch's own float32 parts from its float64 by.
"""

import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regseg_jax.models.regseg import create_model
from regseg_jax.training.losses import cross_entropy
from regseg_jax.weights.names import from_torch, to_torch

VARIANTS = (
    "exp48_decoder26",
    "exp53_decoder29",
    "exp43_decoder14",
    "regnety600mf_decoder14",
    "exp50_decoder4",
)
# A float64 gradient of one variant takes a minute on two cores.
_slow = pytest.mark.slow
FIRST_FAST_OTHERS_SLOW = [VARIANTS[0], *(pytest.param(name, marks=_slow) for name in VARIANTS[1:])]


@pytest.fixture(scope="module")
def fill(golden_dir):
    """The module `fill.py`: weights by name, and the inputs."""
    spec = importlib.util.spec_from_file_location("fill", golden_dir / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def load(golden_dir, fill):
    """Returns a function: variant -> (Flax variables, the author's outputs)."""
    state_dicts = json.loads((golden_dir / "state_dicts.json").read_text())

    def load(name):
        shapes = state_dicts[name]
        state_dict = {key: fill.fill(key, tuple(shape)) for key, shape in shapes.items()}
        return from_torch(state_dict), np.load(golden_dir / f"{name}.npz")

    return load


@pytest.fixture(scope="module")
def images(fill):
    """{"even", "odd"}: f32[B, H, W, 3]."""
    return {key: array.transpose(0, 2, 3, 1) for key, array in fill.inputs()[0].items()}


@pytest.fixture(scope="module")
def labels(fill):
    """i32[B, H, W] for the odd images."""
    return fill.inputs()[1].astype(np.int32)


def _logit_error(logits, expected):
    """The largest difference on every 4th pixel, in deviations of the expected logits."""
    logits = np.asarray(logits)[:, ::4, ::4].transpose(0, 3, 1, 2)
    return np.abs(logits - expected).max() / expected.std()


@pytest.mark.parametrize(
    ("name", "size"), [("exp48_decoder26", "even"), *((name, "odd") for name in VARIANTS)]
)
def test_evaluation_logits(name, size, load, images):
    variables, expected = load(name)
    apply = jax.jit(functools.partial(create_model(name, 19).apply, train=False))
    logits = apply(variables, images[size])
    assert _logit_error(logits, expected[f"eval_logits_{size}"]) < 1e-4


@pytest.mark.parametrize("name", FIRST_FAST_OTHERS_SLOW)
def test_training_logits(name, load, images):
    variables, expected = load(name)
    apply = functools.partial(create_model(name, 19).apply, train=True, mutable=["batch_stats"])
    logits, _ = jax.jit(apply)(variables, images["odd"])
    assert _logit_error(logits, expected["train_logits_odd"]) < 1e-3


@pytest.mark.parametrize("name", FIRST_FAST_OTHERS_SLOW)
def test_training_step_in_float64(name, load, images, labels):
    variables, expected = load(name)

    def loss_fn(params, batch_stats, images):
        logits, updates = create_model(name, 19, jnp.float64).apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        return cross_entropy(logits, labels), updates["batch_stats"]

    with jax.enable_x64(True):
        inputs = (variables["params"], variables["batch_stats"], images["odd"])
        inputs = jax.tree.map(lambda array: array.astype(np.float64), inputs)
        (loss, batch_stats), gradients = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(*inputs)
    assert loss.dtype == jnp.float64
    np.testing.assert_allclose(loss, expected["train_loss"], rtol=1e-12)

    # The names of gradients and statistics are PyTorch's.
    arrays = to_torch({"params": gradients, "batch_stats": batch_stats})
    norms = [np.linalg.norm(arrays[key]) for key in expected["param_names"]]
    # Where the batch's statistics cancel a parameter, its gradient is 0 but for rounding.
    np.testing.assert_allclose(norms, expected["grad_norms"], rtol=1e-6, atol=1e-12)
    sums = [arrays[key].sum() for key in expected["bn_names"]]
    np.testing.assert_allclose(sums, expected["bn_sums_after_step"], rtol=1e-6, atol=1e-9)
    parameters = {key for key in arrays if "running" not in key and "tracked" not in key}
    assert parameters == set(expected["param_names"])
