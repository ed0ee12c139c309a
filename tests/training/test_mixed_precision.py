"""Gradients in half precision are as near to float32's as those of PyTorch's autocast.

How near is a property of the network and its inputs, not of the code, and gets worse with depth:
at initialisation the cosine of the full model's bfloat16 and float32 gradients is 0.25 in PyTorch.
So PyTorch on the same weights and inputs is the yardstick, and one step is compared: after
several, rounding alone has moved the steps apart, by different amounts on different CPUs.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_import
import torch
import torch.nn.functional as F
from small_import import NAME, NUM_CLASSES

from regseg_jax.export.torch_model import create_torch_model
from regseg_jax.models.regseg import create_model
from regseg_jax.training.losses import CrossEntropy
from regseg_jax.weights.names import from_torch, to_torch

LOSS_SCALES = {"float32": 1.0, "bfloat16": 1.0, "float16": 2.0**10}


@pytest.fixture(autouse=True, scope="module")
def small_backbone():
    with small_import.small_backbone():
        yield


@pytest.fixture(scope="module")
def batch() -> tuple[np.ndarray, np.ndarray]:
    """Images f32[8, 48, 64, 3] whose colours follow the labels i32[8, 48, 64]."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, NUM_CLASSES, (8, 6, 8)).repeat(8, axis=1).repeat(8, axis=2)
    images = labels[..., None] * np.array([20, 13, 7]) + rng.integers(0, 40, (*labels.shape, 3))
    return (images / 128 - 1).astype(np.float32), labels.astype(np.int32)


def _compute_jax_gradients(precision: str, batch) -> dict[str, np.ndarray]:
    model = create_model(NAME, NUM_CLASSES, jnp.dtype(precision))
    weights = small_import.create_weights()
    variables = from_torch({name: tensor.numpy() for name, tensor in weights.items()})
    scale = LOSS_SCALES[precision]

    def loss_fn(params):
        logits, _ = model.apply(
            {"params": params, "batch_stats": variables["batch_stats"]},
            batch[0],
            train=True,
            mutable=["batch_stats"],
        )
        return scale * CrossEntropy()(logits, batch[1])

    gradients = jax.jit(jax.grad(loss_fn))(variables["params"])
    arrays = to_torch({"params": gradients, "batch_stats": variables["batch_stats"]})
    return {name: array / scale for name, array in arrays.items()}


def _compute_torch_gradients(precision: str, batch) -> dict[str, np.ndarray]:
    model = create_torch_model(NAME, NUM_CLASSES).train()
    model.load_state_dict(small_import.create_weights())
    images, labels = torch.from_numpy(batch[0]).permute(0, 3, 1, 2), torch.from_numpy(batch[1])
    autocast = contextlib.nullcontext()
    if precision != "float32":
        autocast = torch.autocast("cpu", getattr(torch, precision))
    with autocast:
        logits = model(images)
    scale = LOSS_SCALES[precision]
    (scale * F.cross_entropy(logits.float(), labels.long())).backward()
    return {name: p.grad.numpy() / scale for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def in_float32(batch) -> dict[str, np.ndarray]:
    """PyTorch's gradients in float32, by parameter."""
    return _compute_torch_gradients("float32", batch)


def _compute_angle(gradients: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """1 - the cosine of all gradients as one vector."""
    a, b = (
        np.concatenate([arrays[name].ravel().astype(np.float64) for name in expected])
        for arrays in (gradients, expected)
    )
    return 1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def test_float32_gradients_are_those_of_pytorch(batch, in_float32):
    assert _compute_angle(_compute_jax_gradients("float32", batch), in_float32) < 1e-4


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_as_near_to_float32_as_pytorch_autocast(precision, batch, in_float32):
    ours = _compute_angle(_compute_jax_gradients(precision, batch), in_float32)
    theirs = _compute_angle(_compute_torch_gradients(precision, batch), in_float32)
    # Over seeds and weights ours was 0.6 to 1.4 times theirs; 0.003 in float16, 0.03 in bfloat16.
    assert 1e-4 < ours < 2 * theirs
