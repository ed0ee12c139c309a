"""What devices send each other: read from the programs that the compiler makes for two of them."""

import collections
import functools
import importlib.util
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.training.dynamic_scale import DynamicScale
from flax.traverse_util import flatten_dict
from jax import Array
from jax.sharding import Mesh

from regseg_jax.benchmark.targets import create_target
from regseg_jax.data.augment import AugmentConfig, augment, normalize
from regseg_jax.models.regseg import RegSeg
from regseg_jax.models.searched_model import create_search_model, searched_layers
from regseg_jax.models.variants import Backbone, Block, Variant
from regseg_jax.ops.conv import grouped_conv
from regseg_jax.training.eval_step import create_classify_fn, create_eval_step
from regseg_jax.training.losses import BootstrappedCrossEntropy, CrossEntropy
from regseg_jax.training.optimizer import create_learning_rate_fn, create_optimizer
from regseg_jax.training.precise_bn import create_add_batch
from regseg_jax.training.rate_search import ContinuousSearch
from regseg_jax.training.sharding import arrange_mesh, batch_sharded, replicated
from regseg_jax.training.steps import create_train_step
from regseg_jax.training.train_state import create_train_state

LEARNING_RATE_FN = create_learning_rate_fn(0.05, 10, 2)
CROSS_ENTROPY = CrossEntropy()
TX = create_optimizer(LEARNING_RATE_FN, 1e-4)
AUGMENT_FN = functools.partial(augment, config=AugmentConfig((32, 48), 24, 64))


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return Mesh(jax.devices()[:2], ("data",))


@pytest.fixture(scope="module")
def variant() -> Variant:
    """Groups, two branches and a shortcut, in as few layers as there can be."""
    stages = (
        ("stage4", (Block(16, stride=2),)),
        ("stage8", (Block(16, stride=2),)),
        ("stage16", (Block(32, stride=2), Block(32, (1, 2)))),
    )
    return Variant("tiny_decoder12", Backbone(stages), "decoder12")


@pytest.fixture(scope="module")
def model(variant) -> RegSeg:
    return RegSeg(variant, num_classes=11)


def _count_collectives(fun: Callable, *args: Any, platform: str = "tpu") -> collections.Counter:
    """Compiles for the CPU what JAX gives accelerators: their convolutions, not the CPU's.

    On the CPU's own, which are matrix products, the partitioner has nothing to gather.
    For arguments on GPUs, which need not exist, platform is "cuda".
    """
    lowered = jax.jit(fun).trace(*args).lower(lowering_platforms=(platform,))
    text = lowered.compile(compiler_options={"xla_backend_optimization_level": 0}).as_text()
    assert re.search(r" convolution\(|__cudnn\$conv", text)
    kinds = (
        "all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter"
    )
    return collections.Counter(re.findall(rf" ({kinds})(?:-start)?\(", text))


def _abstract(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def _batch(mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    shape = (2 * mesh.size, 48, 64)
    batch = {"image": np.zeros((*shape, 3), np.uint8), "label": np.zeros(shape, np.uint8)}
    return _abstract(batch, batch_sharded(mesh))


def _variables(model: RegSeg, mesh: Mesh) -> Any:
    shapes = jax.eval_shape(lambda: create_train_state(model, TX, jax.random.key(0)))
    return _abstract(shapes.variables, replicated(mesh))


def _count_of_train_step(
    model: RegSeg,
    mesh: Mesh,
    loss_fn: CrossEntropy = CROSS_ENTROPY,
    tx: Any = TX,
    dynamic_scale: Any = None,
    platform: str = "tpu",
    **options: Any,
) -> collections.Counter:
    step = create_train_step(
        model, tx, LEARNING_RATE_FN, loss_fn, AUGMENT_FN, jax.random.key(0), mesh, **options
    )
    state = jax.eval_shape(lambda: create_train_state(model, tx, jax.random.key(0), with_ema=True))
    state = state.replace(dynamic_scale=dynamic_scale)
    state = _abstract(state, replicated(mesh))
    return _count_collectives(step, state, _batch(mesh), platform=platform)


def _num_batch_norms(model: RegSeg, mesh: Mesh) -> int:
    return sum(path[-1] == "var" for path in flatten_dict(_variables(model, mesh)["batch_stats"]))


def test_left_to_the_partitioner_a_grouped_convolution_gathers(mesh):
    """That the count sees it, and why the steps say their parallelism themselves."""
    x = jax.ShapeDtypeStruct((4, 8, 8, 32), jnp.float32, sharding=batch_sharded(mesh))
    kernel = jax.ShapeDtypeStruct((3, 3, 16, 32), jnp.float32, sharding=replicated(mesh))

    def loss(x: Array, kernel: Array) -> Array:
        return jnp.square(grouped_conv(x, kernel, groups=2, lowering="conv")).sum()

    assert _count_collectives(jax.grad(loss, (0, 1)), x, kernel)["all-gather"] > 0


def test_a_step_sends_two_sums_a_batch_norm_and_the_gradients(model, mesh):
    counts = _count_of_train_step(model, mesh)
    assert counts.keys() == {"all-reduce"}
    # Forwards and backwards, some in one call; loss and gradients in few.
    assert counts["all-reduce"] <= 2 * _num_batch_norms(model, mesh)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None, reason="needs the extra aot-gpu"
)
@pytest.mark.usefixtures("without_compilation_cache")
def test_eight_gpus_send_no_more(model):
    mesh = arrange_mesh(create_target("h100:8").devices)
    counts = _count_of_train_step(model, mesh, platform="cuda")
    assert counts.keys() == {"all-reduce"}
    assert counts["all-reduce"] <= 2 * _num_batch_norms(model, mesh)


def test_a_bootstrapped_loss_sends_counts_and_a_loss_scale_nothing(model, mesh):
    """With statistics per device, to see what is left."""
    loss_fn = BootstrappedCrossEntropy(min_pixels=50)
    scale = jax.eval_shape(lambda: DynamicScale(fin_steps=jnp.int32(0), scale=jnp.float32(1)))
    counts = _count_of_train_step(
        model, mesh, loss_fn, dynamic_scale=scale, batch_norm_per_device=True
    )
    assert counts.keys() == {"all-reduce"}
    # The K-th largest loss (in a loop), pixels above it, loss; gradients and statistics in few.
    assert counts["all-reduce"] <= 7


def test_micro_batches_send_their_gradients_together(model, mesh):
    """With statistics per device, to see what is left."""
    counts = _count_of_train_step(model, mesh, batch_norm_per_device=True, accumulation_steps=2)
    assert counts.keys() == {"all-reduce"}
    # Of labelled pixels; of loss and statistics, in a loop; of the gradients.
    assert counts["all-reduce"] <= 4


def test_the_search_of_dilation_rates_sends_nothing_else(variant, mesh):
    model = create_search_model(
        variant, 11, jnp.float32, method="continuous", num_branches=2, rate=1
    )
    layers = searched_layers(model.variant.backbone)
    tx = ContinuousSearch(layers, 0.1, warmup_steps=2, num_steps=10).create_optimizer(TX)
    counts = _count_of_train_step(model, mesh, tx=tx, batch_norm_per_device=True)
    assert counts.keys() == {"all-reduce"}
    assert counts["all-reduce"] <= 4


def test_evaluation_sends_its_counts(model, mesh):
    eval_step = create_eval_step(model, create_classify_fn(model, normalize), mesh)
    counts = _count_collectives(eval_step, _variables(model, mesh), _batch(mesh))
    assert counts == {"all-reduce": 1}


def test_precise_batch_norm_sends_a_sum_a_batch_norm(model, mesh):
    add_batch = create_add_batch(model, AUGMENT_FN, jax.random.key(0), mesh, num_steps=2)
    variables = _variables(model, mesh)
    counts = _count_collectives(
        add_batch, variables["batch_stats"], variables["params"], _batch(mesh), jnp.int32(0)
    )
    assert counts.keys() == {"all-reduce"}
    assert counts["all-reduce"] <= _num_batch_norms(model, mesh)
