import dataclasses
import functools

import jax
import numpy as np
import pytest
import torch
from golden import author
from jax.sharding import Mesh, PartitionSpec

from regseg_jax.training.losses import BootstrappedCrossEntropy, CrossEntropy

NUM_CLASSES = 5
CLASS_WEIGHTS = (0.5, 2.0, 0.25, 1.0, 3.0)

# The value and its gradient; K and the threshold are traced, so that each compiles once a shape.
CROSS_ENTROPY = jax.jit(jax.value_and_grad(CrossEntropy()))


@jax.jit
def BOOTSTRAPPED(logits, labels, min_pixels, threshold=0.3):
    loss_fn = BootstrappedCrossEntropy(min_pixels=min_pixels, threshold=threshold)
    return jax.value_and_grad(loss_fn)(logits, labels)


def _random_case(seed: int, scale: float = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = scale * rng.standard_normal((8, 6, 7, NUM_CLASSES)).astype(np.float32)
    labels = rng.integers(0, NUM_CLASSES, (8, 6, 7))
    labels[rng.random(labels.shape) < 0.2] = 255
    return logits, labels


def _pixel_losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropy in float64, by its definition."""
    logits = logits.astype(np.float64)
    log_sum = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    ignored = labels == 255
    of_label = np.take_along_axis(logits, np.where(ignored, 0, labels)[..., None], -1)[..., 0]
    return np.where(ignored, 0, log_sum - of_label)


def _bootstrapped(
    logits: np.ndarray, labels: np.ndarray, min_pixels: int, threshold: float
) -> float:
    """Sorts all losses: the mean of those above the threshold, or of the first min_pixels."""
    losses = np.sort(_pixel_losses(logits, labels).ravel())[::-1]
    if losses[min_pixels] > threshold:
        return losses[losses > threshold].mean()
    return losses[:min_pixels].mean()


def test_cross_entropy_against_its_definition():
    logits, labels = _random_case(0)
    expected = _pixel_losses(logits, labels).sum() / (labels != 255).sum()
    np.testing.assert_allclose(CROSS_ENTROPY(logits, labels)[0], expected, rtol=1e-6)


def test_another_ignore_label():
    logits, labels = _random_case(0)
    other = np.where(labels == 255, -1, labels)
    for loss_fn in (CrossEntropy(), BootstrappedCrossEntropy(min_pixels=20)):
        result = dataclasses.replace(loss_fn, ignore_label=-1)(logits, other)
        np.testing.assert_allclose(result, loss_fn(logits, labels), rtol=1e-6)


def test_ignored_pixels_have_no_influence():
    logits, labels = _random_case(1)
    changed = np.where((labels == 255)[..., None], -7 * logits + 3, logits)
    for loss_and_grad in (CROSS_ENTROPY, functools.partial(BOOTSTRAPPED, min_pixels=30)):
        loss, grad = loss_and_grad(logits, labels)
        assert loss_and_grad(changed, labels)[0] == loss
        assert not np.asarray(grad)[labels == 255].any()
        assert np.asarray(grad)[labels != 255].any()


def test_extreme_logits_stay_finite():
    logits = np.array([[[[1e4, -1e4, 0, 0, 0], [-1e4, 1e4, 0, 0, 0]]]], np.float32)
    labels = np.zeros((1, 1, 2), int)
    loss, grad = CROSS_ENTROPY(logits, labels)
    assert loss == pytest.approx(1e4)  # of 0 and 2e4
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("min_pixels", [1, 20, 8 * 6 * 7])
def test_all_ignored_is_zero_with_a_finite_gradient(min_pixels):
    logits, labels = _random_case(2)
    labels = np.full_like(labels, 255)
    for loss_and_grad in (CROSS_ENTROPY, functools.partial(BOOTSTRAPPED, min_pixels=min_pixels)):
        loss, grad = loss_and_grad(logits, labels)
        assert loss == 0
        assert not np.asarray(grad).any()


# min_pixels, threshold: many hard pixels, few, none, and every K at the ends.
@pytest.mark.parametrize(
    ("min_pixels", "threshold"),
    [(20, 0.3), (100, 6.0), (100, 1e6), (1, 1e6), (1, 0.3), (334, 0.0), (300, 3.0)],
)
@pytest.mark.parametrize("seed", [3, 4])
def test_bootstrapped_against_a_sort(min_pixels, threshold, seed):
    logits, labels = _random_case(seed)
    loss, _ = BOOTSTRAPPED(logits, labels, min_pixels, threshold)
    expected = _bootstrapped(logits, labels, min_pixels, threshold)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("min_pixels", [1, 8, 40, 130, 200, 300])
def test_bootstrapped_with_ties_against_a_sort(min_pixels):
    """All pixels of an image have the same logits, so the K-th loss is one of many equal ones."""
    logits, labels = _random_case(5)
    logits, labels = np.broadcast_to(logits[:, :1, :1], logits.shape), labels[:, :1, :1]
    labels = np.array(np.broadcast_to(labels, logits.shape[:-1]))
    labels[:2] = [[[0]], [[1]]]
    labels[7] = 255
    logits = np.array(logits)
    logits[1] = np.roll(logits[0], 1, axis=-1)  # the losses of images 0 and 1 are equal too
    expected = _bootstrapped(logits, labels, min_pixels, 1e6)
    loss, grad = BOOTSTRAPPED(logits, labels, min_pixels, 1e6)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    # The gradient is that of K pixels' mean: it is divided equally among ties.
    norms = np.linalg.norm(grad, axis=-1)
    for image_norms in norms:
        np.testing.assert_allclose(image_norms, image_norms[0, 0], rtol=1e-5, atol=1e-8)


def test_bootstrapped_gradient_is_that_of_the_hard_pixels():
    logits, labels = _random_case(6)
    losses = _pixel_losses(logits, labels)
    _, grad = BOOTSTRAPPED(logits, labels, 20, 0.5)
    touched = np.abs(np.asarray(grad)).max(-1) > 0
    np.testing.assert_array_equal(touched, losses > 0.5)


@pytest.mark.parametrize("class_weights", [None, CLASS_WEIGHTS])
@pytest.mark.parametrize("min_pixels", [None, 20, 330])
def test_same_loss_on_eight_devices(min_pixels, class_weights):
    logits, labels = _random_case(7)
    labels[0] = 255  # devices with nothing to count
    loss_fn = CrossEntropy(class_weights)
    if min_pixels:
        loss_fn = BootstrappedCrossEntropy(class_weights, min_pixels=min_pixels)
    on_each_device = jax.shard_map(
        jax.value_and_grad(functools.partial(loss_fn, axis_name="data")),
        mesh=Mesh(np.array(jax.devices()), ("data",)),
        in_specs=PartitionSpec("data"),
        out_specs=(PartitionSpec(), PartitionSpec("data")),
    )
    expected, expected_grad = jax.jit(jax.value_and_grad(loss_fn))(logits, labels)
    loss, grad = jax.jit(on_each_device)(logits, labels)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-5, atol=1e-9)
    assert len(grad.sharding.device_set) == 8


@pytest.mark.parametrize(
    "loss_fn",
    [
        CrossEntropy(),
        CrossEntropy(CLASS_WEIGHTS),
        BootstrappedCrossEntropy(min_pixels=20),
        BootstrappedCrossEntropy(CLASS_WEIGHTS, min_pixels=330),
    ],
)
def test_the_losses_of_parts_add_up_to_the_batch_s(loss_fn):
    """Parts of different numbers of labelled and hard pixels."""
    logits, labels = _random_case(11)
    labels[:3] = 255
    logits[6:] *= 2
    losses = loss_fn.pixel_losses(logits, labels)
    weights = loss_fn.weigh(labels, lambda: losses)
    expected, expected_grad = jax.value_and_grad(loss_fn)(logits, labels)
    parts = [
        jax.value_and_grad(loss_fn)(
            logits[i : i + 4], labels[i : i + 4], pixel_weights=weights[i : i + 4]
        )
        for i in (0, 4)
    ]
    np.testing.assert_allclose(sum(loss for loss, _ in parts), expected, rtol=1e-6)
    grad = np.concatenate([grad for _, grad in parts])
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-5, atol=1e-9)
    assert abs(float(parts[0][0] - parts[1][0])) > 0.1  # not halves of it


def _torch_loss(
    logits: np.ndarray, labels: np.ndarray, reduction: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted loss and the logits that it is of."""
    leaf = torch.tensor(logits.transpose(0, 3, 1, 2), dtype=torch.float64, requires_grad=True)
    loss_fn = torch.nn.CrossEntropyLoss(
        torch.tensor(CLASS_WEIGHTS, dtype=torch.float64), ignore_index=255, reduction=reduction
    )
    return loss_fn(leaf, torch.tensor(labels)), leaf


def test_class_weights_as_in_torch():
    logits, labels = _random_case(8)
    loss, grad = jax.jit(jax.value_and_grad(CrossEntropy(CLASS_WEIGHTS)))(logits, labels)
    expected, leaf = _torch_loss(logits, labels, "mean")
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-6)
    expected_grad = leaf.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-4, atol=1e-9)


# Fewer above the threshold than K, and more.
@pytest.mark.parametrize(("min_pixels", "threshold"), [(40, 1e6), (40, 1.0)])
def test_bootstrapped_weighs_pixels_before_it_selects(min_pixels, threshold):
    logits, labels = _random_case(9)
    loss_fn = BootstrappedCrossEntropy(CLASS_WEIGHTS, min_pixels=min_pixels, threshold=threshold)
    losses, leaf = _torch_loss(logits, labels, "none")
    hard = losses.flatten().sort(descending=True).values
    expected = (hard[hard > threshold] if threshold == 1.0 else hard[:min_pixels]).mean()
    expected.backward()
    loss, grad = jax.jit(jax.value_and_grad(loss_fn))(logits, labels)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    expected_grad = leaf.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-4, atol=1e-8)


def test_a_class_without_weight_is_left_out_and_all_without_are_zero():
    logits, labels = _random_case(10)
    loss, grad = jax.value_and_grad(CrossEntropy(5 * (0.0,)))(logits, labels)
    assert loss == 0
    assert not np.asarray(grad).any()
    expected = CrossEntropy()(logits, np.where(labels == 2, 255, labels))
    loss = CrossEntropy((1.0, 1.0, 0.0, 1.0, 1.0))(logits, labels)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["hard", "easy"])
@pytest.mark.parametrize("name", ["ce", "bootstrapped"])
def test_as_the_authors_losses(kind, name):
    expected = author.load("training")
    rng = np.random.default_rng(7)
    logits = 3 * rng.standard_normal((2, 19, 40, 50)).astype(np.float32)
    labels = rng.integers(0, 19, (2, 40, 50))
    labels[rng.random(labels.shape) < 0.1] = 255
    if kind == "easy":
        np.put_along_axis(logits, np.where(labels == 255, 0, labels)[:, None], 12.0, axis=1)
    loss_and_grad = CROSS_ENTROPY
    if name == "bootstrapped":
        loss_and_grad = functools.partial(BOOTSTRAPPED, min_pixels=250, threshold=0.3)
    loss, grad = loss_and_grad(logits.transpose(0, 2, 3, 1), labels)
    np.testing.assert_allclose(loss, expected[f"{name}_{kind}_loss"], rtol=1e-5)
    norm = np.linalg.norm(grad)
    np.testing.assert_allclose(norm, expected[f"{name}_{kind}_grad_norm"], rtol=1e-5)
