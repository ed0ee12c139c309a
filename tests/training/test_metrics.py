import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from regseg_jax.training.metrics import ConfusionMatrix, compute_scores


@functools.partial(jax.jit, static_argnames="num_classes")
def _count(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> ConfusionMatrix:
    return ConfusionMatrix.from_model_output(
        labels=labels, predictions=predictions, num_classes=num_classes
    )


def test_a_hand_worked_example():
    labels = jnp.array([[[0, 0, 0, 1], [1, 2, 255, 255]]])
    predictions = jnp.array([[[0, 0, 1, 1], [2, 2, 0, 3]]])
    matrix = _count(labels, predictions, num_classes=4)
    expected = [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(matrix.matrix, expected)  # row: label, column: prediction
    scores = matrix.compute()
    np.testing.assert_array_equal(scores.confusion_matrix, expected)
    # Class 0: 2 of 3 pixels; class 1: 1 of {2 labels, 2 predictions}; class 2: 1 of {1, 2}.
    np.testing.assert_allclose(scores.iou_per_class, [2 / 3, 1 / 3, 1 / 2, np.nan])
    assert scores.mean_iou == pytest.approx((2 / 3 + 1 / 3 + 1 / 2) / 3)
    assert scores.pixel_accuracy == pytest.approx(4 / 6)
    assert scores.absent_classes == (3,)


def test_against_sets_of_pixels():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, (3, 20, 30))
    predictions = np.where(rng.random(labels.shape) < 0.6, labels, rng.integers(0, 7, labels.shape))
    labels[rng.random(labels.shape) < 0.1] = 255
    matrix = _count(labels, predictions, num_classes=7)
    scored = labels != 255
    expected = [
        (scored & (labels == c) & (predictions == c)).sum()
        / (scored & ((labels == c) | (predictions == c))).sum()
        for c in range(7)
    ]
    scores = matrix.compute()
    np.testing.assert_allclose(scores.iou_per_class, expected)
    assert scores.mean_iou == pytest.approx(np.mean(expected))
    assert scores.pixel_accuracy == pytest.approx((labels == predictions)[scored].mean())


def test_labels_outside_the_classes_are_left_out():
    labels = jnp.array([[-1, 3, 4, 255, 1]])
    predictions = jnp.array([[0, 1, 2, 1, 1]])
    matrix = _count(labels, predictions, num_classes=3)
    np.testing.assert_array_equal(matrix.matrix, [[0, 0, 0], [0, 1, 0], [0, 0, 0]])


def test_the_mean_without_some_classes():
    scores = compute_scores(np.diag([4, 0, 3, 5]) + np.array([[0, 0, 2, 0]] + 3 * [[0] * 4]))
    np.testing.assert_allclose(scores.iou_per_class, [4 / 6, np.nan, 3 / 5, 1])
    assert scores.mean_iou_without((0,)) == pytest.approx((3 / 5 + 1) / 2)
    assert scores.mean_iou_without(()) == pytest.approx(scores.mean_iou)
    assert np.isnan(scores.mean_iou_without((0, 2, 3)))


def test_a_class_that_is_only_predicted_counts_as_zero():
    scores = compute_scores(np.array([[5, 5], [0, 0]]))
    np.testing.assert_allclose(scores.iou_per_class, [0.5, 0])
    assert scores.mean_iou == 0.25
    assert scores.absent_classes == ()


def test_no_labelled_pixel_gives_nan():
    scores = ConfusionMatrix.empty(3).compute()
    assert np.isnan(scores.mean_iou)
    assert np.isnan(scores.pixel_accuracy)
    assert np.isnan(scores.iou_per_class).all()
    assert scores.absent_classes == (0, 1, 2)


def test_merging_is_counting_together():
    rng = np.random.default_rng(1)
    labels, predictions = rng.integers(0, 4, (2, 6, 10, 10))

    def count(part: slice) -> ConfusionMatrix:
        return _count(labels[part], predictions[part], num_classes=4)

    merged = ConfusionMatrix.empty(4).merge(count(slice(2))).merge(count(slice(2, 6)))
    np.testing.assert_array_equal(merged.matrix, count(slice(6)).matrix)


def test_merging_goes_beyond_int32():
    batch = ConfusionMatrix(jnp.full((2, 2), 2**30, jnp.int32))
    total = ConfusionMatrix.empty(2)
    for _ in range(5):
        total = total.merge(batch)
    assert total.matrix.dtype == np.int64
    np.testing.assert_array_equal(total.matrix, 5 * 2**30)
    assert total.compute().mean_iou == pytest.approx(1 / 3)
    # Two from the device at once, too.
    np.testing.assert_array_equal(batch.merge(batch).matrix, 2**31)


def test_same_counts_on_eight_devices():
    rng = np.random.default_rng(2)
    labels, predictions = rng.integers(0, 5, (2, 8, 9, 10))
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    sharded = _count(*jax.device_put((labels, predictions), sharding), num_classes=5)
    expected = np.zeros((5, 5), int)
    np.add.at(expected, (labels, predictions), 1)
    np.testing.assert_array_equal(sharded.matrix, expected)
