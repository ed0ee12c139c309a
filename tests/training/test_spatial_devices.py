"""Several devices that share images compute what one device does, in float64."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.sharding import Mesh

from regseg_jax.models.regseg import RegSeg
from regseg_jax.models.searched_model import create_search_model
from regseg_jax.models.variants import Backbone, Block, Variant
from regseg_jax.training.eval_step import create_classify_fn, create_eval_step
from regseg_jax.training.losses import BootstrappedCrossEntropy, CrossEntropy
from regseg_jax.training.optimizer import create_learning_rate_fn, create_optimizer
from regseg_jax.training.sharding import arrange_mesh, replicate, shard_batch
from regseg_jax.training.steps import create_train_step
from regseg_jax.training.train_state import create_train_state

CLASSES = 5
LEARNING_RATE_FN = create_learning_rate_fn(0.05, 10, 2)
TX = create_optimizer(LEARNING_RATE_FN, 1e-4)
QUICK_COMPILATION = {"xla_backend_optimization_level": 0}


def _variant(decoder: str, *, pool_in_shortcut: bool = True) -> Variant:
    """At 1/16 a device may have one row: rate 3 reaches beyond the neighbour."""
    stages = (
        ("stage4", (Block(16, stride=2),)),
        ("stage8", (Block(16, stride=2),)),
        ("stage16", (Block(32, stride=2), Block(32, (1, 3)))),
    )
    return Variant("tiny", Backbone(stages, 8, pool_in_shortcut), decoder)


def _batch(height: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, height, 40, 3)).astype(np.uint8)
    labels = rng.integers(0, CLASSES, (2, height, 40)).astype(np.uint8)
    labels[:, :3] = 255
    return {"image": images, "label": labels}


def _meshes(groups: int, sharing: int) -> tuple[Mesh, Mesh]:
    devices = jax.devices()
    return arrange_mesh(devices[:1]), arrange_mesh(devices[: groups * sharing], sharing)


def _assert_equal(actual: Any, expected: Any) -> None:
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-10), actual, expected
    )


def _prepare(images: Array, labels: Array, rng: Array) -> tuple[Array, Array]:
    return images.astype(jnp.float64) / 128 - 1, labels.astype(jnp.int32)


LOSSES = {
    "cross_entropy": CrossEntropy(),
    "bootstrapped": BootstrappedCrossEntropy(min_pixels=300, threshold=9.0),
}
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("decoder", "height", "groups", "sharing", "loss"),
    [
        ("decoder12", 55, 2, 2, "cross_entropy"),
        slow("decoder26", 61, 1, 4, "bootstrapped"),
        slow("decoder26", 64, 1, 2, "cross_entropy"),
        slow("BisenetDecoder", 61, 2, 4, "cross_entropy"),
        slow("SFNetDecoder", 61, 1, 4, "cross_entropy"),
        slow("lraspp", 64, 2, 2, "bootstrapped"),
        slow("searched", 61, 1, 4, "cross_entropy"),
    ],
)
def test_a_training_step(decoder, height, groups, sharing, loss):
    model = RegSeg(_variant(decoder), CLASSES)
    if decoder == "searched":
        model = create_search_model(
            _variant("decoder12"), CLASSES, jnp.float32, num_branches=2, method="continuous", rate=2
        )

    def widen(x: Array) -> np.ndarray:
        x = np.asarray(x)
        return x.astype(np.float64) if x.dtype == np.float32 else x

    state = jax.tree.map(widen, jax.jit(lambda: create_train_state(model, TX, jax.random.key(0)))())

    def train(mesh: Mesh) -> Any:
        step = create_train_step(
            model.clone(dtype=jnp.float64),
            *(TX, LEARNING_RATE_FN, LOSSES[loss], _prepare, jax.random.key(0), mesh),
        )
        with jax.enable_x64(True):
            jitted = jax.jit(step, compiler_options=QUICK_COMPILATION)
            return jitted(replicate(state, mesh), shard_batch(_batch(height), mesh))

    one, several = _meshes(groups, sharing)
    _assert_equal(train(several), train(one))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (55, 40)),
        ({}, (32, 48)),  # what images are resized to; labels keep their size
        ({"scales": (0.5, 1.25), "flip": True}, (55, 40)),
    ],
)
def test_an_evaluation_step(options, size):
    model = RegSeg(_variant("decoder4", pool_in_shortcut=False), CLASSES, dtype=jnp.float64)

    def prepare(images: Array) -> Array:
        shape = (len(images), *size, 3)
        return jax.image.resize(images.astype(jnp.float64) / 128 - 1, shape, "bilinear")

    with jax.enable_x64(True):
        init = functools.partial(model.init, train=False)
        variables = jax.jit(init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    # Weights so large, and no bias, that the images decide on the classes.
    variables = jax.tree_util.tree_map_with_path(
        lambda path, x: np.asarray(x) * {"kernel": 4, "bias": 0}.get(path[-1].key, 1), variables
    )

    def evaluate(mesh: Mesh) -> Any:
        step = create_eval_step(model, create_classify_fn(model, prepare, **options), mesh)
        with jax.enable_x64(True):
            jitted = jax.jit(step, compiler_options=QUICK_COMPILATION)
            return jitted(variables, shard_batch(_batch(55), mesh))

    one, several = _meshes(2, 4)
    (expected, expected_matrix), (actual, matrix) = evaluate(one), evaluate(several)
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(matrix.matrix, expected_matrix.matrix)
