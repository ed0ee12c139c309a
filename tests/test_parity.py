"""Whole models against the author's PyTorch code (see golden/README.md).

The author's numbers are of float64. In float32 the tolerances are a few times what PyTorch's own
float32 differs from its float64 by: 1e-5 of the logits' standard deviation in evaluation mode,
3e-4 in training mode.
"""

import functools
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import author, distil

from regseg_jax.models.regseg import create_model
from regseg_jax.training.losses import CrossEntropy
from regseg_jax.weights.names import from_torch, to_torch

IMAGES, LABELS = author.create_inputs()


def _to_nhwc(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 2, 3, 1)


def _logit_error(logits: jax.Array, expected: dict[str, np.ndarray], key: str) -> float:
    return author.compute_logit_error(np.moveaxis(np.asarray(logits), -1, 1), expected, key)


@pytest.mark.parametrize(
    ("name", "size"),
    [("exp48_decoder26", "even"), *((name, "odd") for name in author.VARIANTS)],
)
def test_evaluation_logits(name, size):
    variables = from_torch(author.create_state_dict(name))
    apply = jax.jit(functools.partial(create_model(name, 19).apply, train=False))
    logits = apply(variables, _to_nhwc(IMAGES[size]))
    assert _logit_error(logits, author.load(name), f"eval_logits_{size}") < 1e-4


def test_training_logits_in_float32():
    name = "exp48_decoder26"
    variables = from_torch(author.create_state_dict(name))
    apply = functools.partial(create_model(name, 19).apply, train=True, mutable=["batch_stats"])
    logits, _ = jax.jit(apply)(variables, _to_nhwc(IMAGES["odd"]))
    assert _logit_error(logits, author.load(name), "train_logits_odd") < 1e-3


# Three of the five would take a minute more.
SLOW = ("exp53_decoder29", "exp43_decoder14", "exp50_decoder4")
SLOW_MARKED = [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in author.VARIANTS
]


@pytest.mark.parametrize("name", SLOW_MARKED)
def test_training_step_in_float64(name):
    """Loss, logits, every gradient's norm and every running statistic's sum."""
    expected, variables = author.load(name), from_torch(author.create_state_dict(name))

    def loss_fn(params, batch_stats, images):
        logits, updates = create_model(name, 19, jnp.float64).apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        loss = CrossEntropy()(logits, LABELS.astype(np.int32))
        return loss, (logits, updates["batch_stats"])

    with jax.enable_x64(True):
        inputs = (variables["params"], variables["batch_stats"], _to_nhwc(IMAGES["odd"]))
        inputs = jax.tree.map(lambda array: array.astype(np.float64), inputs)
        grad_fn = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
        (loss, (logits, batch_stats)), gradients = grad_fn(*inputs)
    assert loss.dtype == jnp.float64
    np.testing.assert_allclose(loss, expected["train_loss"], rtol=1e-12)
    assert _logit_error(logits, expected, "train_logits_odd") < 1e-6  # stored in float32

    # The names of gradients and statistics are PyTorch's.
    arrays = to_torch({"params": gradients, "batch_stats": batch_stats})
    norms = [np.linalg.norm(arrays[key]) for key in expected["param_names"]]
    # Where the batch's statistics cancel a parameter, its gradient is 0 up to rounding.
    np.testing.assert_allclose(norms, expected["grad_norms"], rtol=1e-6, atol=1e-12)
    sums = [arrays[key].sum() for key in expected["bn_names"]]
    np.testing.assert_allclose(sums, expected["bn_sums_after_step"], rtol=1e-6, atol=1e-9)
    parameters = {key for key in arrays if "running" not in key and "tracked" not in key}
    assert parameters == set(expected["param_names"])


def test_the_golden_set_sees_a_single_wrong_pixel():
    """The comparison itself: small errors in one place or everywhere exceed its tolerance."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 19, 235, 341))
    summary = author.summarize_logits(logits[:, :, ::4, ::4])
    expected = {f"odd_{name}": value for name, value in summary.items()}
    assert author.compute_logit_error(logits, expected, "odd") < 1e-6
    one_pixel, shifted = logits.copy(), logits + 2e-4
    one_pixel[1, 3, 4, 8] += 2.0  # on no point of the grid
    for wrong in (one_pixel, shifted, logits * (1 + 2e-4)):
        assert author.compute_logit_error(wrong, expected, "odd") > 1e-4


class TestAgainstTheFullOutputs:
    """The golden set is what `golden/distil.py` makes of the author's full outputs."""

    @pytest.mark.parametrize("name", [*author.VARIANTS, "training"])
    def test_arrays(self, name, full_golden_dir):
        with np.load(full_golden_dir / f"{name}.npz") as arrays:
            full = dict(arrays)
        expected = full if name == "training" else distil.distil_variant(full)
        actual = author.load(name)
        assert actual.keys() == expected.keys()
        for key, array in expected.items():
            np.testing.assert_array_equal(actual[key], array, strict=True, err_msg=key)

    def test_rule_for_weights_and_inputs(self, full_golden_dir: pathlib.Path):
        spec = importlib.util.spec_from_file_location("fill", full_golden_dir / "fill.py")
        original = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(original)
        for name, values in author.create_state_dict("exp43_SFNetDecoder").items():
            np.testing.assert_array_equal(values, original.fill(name, values.shape), strict=True)
        images, labels = original.inputs()
        np.testing.assert_array_equal(LABELS, labels, strict=True)
        for size in ("even", "odd"):
            np.testing.assert_array_equal(IMAGES[size], images[size], strict=True)

    def test_shapes(self, full_golden_dir):
        full = (full_golden_dir / "state_dicts.json").read_text()
        assert author.load_shapes() == json.loads(full)
