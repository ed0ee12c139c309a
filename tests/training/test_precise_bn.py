import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from regseg_jax.models.layers import BatchNorm
from regseg_jax.training.optimizer import create_optimizer
from regseg_jax.training.precise_bn import PreciseBatchNorm
from regseg_jax.training.sharding import replicate
from regseg_jax.training.train_state import TrainState, start_from


class TwoNorms(nn.Module):
    """The second norm sees what the first one makes of the batch."""

    dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train):
        x = BatchNorm(axis_name=self.axis_name, name="first")(x, train=train)
        x = jnp.square(x)
        return BatchNorm(axis_name=self.axis_name, name="second")(x, train=train)


BATCHES = np.random.default_rng(0).integers(0, 256, (3, 8, 4, 5, 3)).astype(np.uint8)


@contextlib.contextmanager
def _create_batches(start_step: int, num_steps: int):
    labels = np.zeros(BATCHES.shape[1:-1], np.uint8)
    yield iter([{"image": BATCHES[i], "label": labels} for i in range(start_step, num_steps)])


def _augment(images, labels, rng):
    return images * (1 + jax.random.uniform(rng)), labels  # each step's own


RNG = jax.random.key(5)


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return Mesh(np.array(jax.devices()), ("data",))


@pytest.fixture
def state(mesh) -> TrainState:
    variables = TwoNorms().init(RNG, jnp.zeros((1, 4, 5, 3)), train=False)
    variables = jax.tree.map(lambda x: x + 0.5, variables)
    tx = create_optimizer(lambda step: 0.1, weight_decay=0.0)
    return replicate(start_from(TwoNorms(), tx, variables, with_ema=True), mesh)


def _images(step: int) -> np.ndarray:
    return np.asarray(
        _augment(BATCHES[step].astype(np.float64), None, jax.random.fold_in(RNG, step))[0]
    )


def test_statistics_are_those_of_micro_batches_where_training_has_them(state):
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))

    def augment(images, labels, rng):
        return images * 1.0, labels

    precise = PreciseBatchNorm(
        TwoNorms(), augment, RNG, _create_batches, mesh, num_steps=2, accumulation_steps=2
    )
    result = precise(replicate(jax.device_get(state), mesh))
    parts = [BATCHES[step, i::2] for step in range(2) for i in range(2)]
    variances = [x.var((0, 1, 2), ddof=1) for x in parts]
    first = result.batch_stats["first"]
    np.testing.assert_allclose(first["var"], np.mean(variances, 0), rtol=1e-4)


def test_statistics_are_the_mean_over_batches_whatever_they_were(mesh, state):
    precise = PreciseBatchNorm(TwoNorms(), _augment, RNG, _create_batches, mesh, num_steps=2)
    result = precise(state)
    images = [_images(step) for step in range(2)]
    first = result.batch_stats["first"]
    np.testing.assert_allclose(first["mean"], np.mean([x.mean((0, 1, 2)) for x in images], 0), 1e-4)
    variances = [x.var((0, 1, 2), ddof=1) for x in images]  # unbiased, as PyTorch keeps them
    np.testing.assert_allclose(first["var"], np.mean(variances, 0), rtol=1e-4)
    # The second sees the first's output with the batch's own statistics, and 0.5 more in bias.
    outputs = [
        np.square(1.5 * (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5) + 0.5)
        for x in images
    ]
    expected = np.mean([y.mean((0, 1, 2)) for y in outputs], 0)
    np.testing.assert_allclose(result.batch_stats["second"]["mean"], expected, rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, result.params, state.params)
    again = precise(result)  # no memory
    jax.tree.map(np.testing.assert_array_equal, again.batch_stats, result.batch_stats)
    # The averaged weights, here the same, get the statistics that are theirs.
    assert result.ema_variables["batch_stats"].keys() == {"first", "second"}
    jax.tree.map(
        np.testing.assert_array_equal, result.ema_variables["batch_stats"], result.batch_stats
    )


def test_nothing_changes_unless_asked_for(mesh, state):
    precise = PreciseBatchNorm(TwoNorms(), _augment, RNG, _create_batches, mesh, num_steps=0)
    assert precise(state) is state
