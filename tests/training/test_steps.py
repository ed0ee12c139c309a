import functools
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.training.dynamic_scale import DynamicScale
from golden import author
from jax import Array, lax
from jax.sharding import Mesh

from regseg_jax.data.augment import AugmentConfig, augment, normalize
from regseg_jax.models.layers import BatchNorm, Conv
from regseg_jax.models.regseg import RegSeg, create_model
from regseg_jax.models.variants import Variant
from regseg_jax.ops.space_to_depth import choose_width
from regseg_jax.training import steps
from regseg_jax.training.eval_step import create_classify_fn, create_eval_step, create_score_fn
from regseg_jax.training.losses import BootstrappedCrossEntropy, CrossEntropy
from regseg_jax.training.optimizer import create_learning_rate_fn, create_optimizer
from regseg_jax.training.sharding import replicate, replicated, shard_batch
from regseg_jax.training.steps import AugmentFn, augment_batch, create_train_step, split_batch
from regseg_jax.training.train_state import TrainState, create_train_state, start_from
from regseg_jax.weights.names import from_torch, to_torch

LEARNING_RATE_FN = create_learning_rate_fn(0.05, 10, 2)
TX = create_optimizer(LEARNING_RATE_FN, 1e-4)
AUGMENT_FN = functools.partial(augment, config=AugmentConfig((64, 64), 40, 90))
# Half the seconds of the default; the steps themselves are few and small.
QUICK_COMPILATION = {"xla_backend_optimization_level": 0}

Step = Callable[[TrainState, dict[str, Array]], tuple[TrainState, dict[str, Array]]]


@pytest.fixture(scope="module")
def model(small_variant) -> RegSeg:
    """The small backbone with the smallest decoder, for training steps take long to compile."""
    return RegSeg(Variant("small_decoder12", small_variant.backbone, "decoder12"), num_classes=11)


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 11, (8, 6, 8), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    images = labels[..., None] * np.array([20, 13, 7]) + rng.integers(0, 40, (*labels.shape, 3))
    labels[:, :5] = 255
    return {"image": images.astype(np.uint8), "label": labels}


@pytest.fixture(scope="module")
def initial_state(model) -> TrainState:
    """As `create_train_state` makes it, in numpy: nothing to compile, and no step can donate it."""
    shapes = jax.eval_shape(lambda: create_train_state(model, TX, jax.random.key(0)))
    rng = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key in ("scale", "var"):
            return np.ones(leaf.shape, leaf.dtype)
        if path[-1].key != "kernel":
            return np.zeros(leaf.shape, leaf.dtype)
        bound = np.prod(leaf.shape[:3]) ** -0.5
        return rng.uniform(-bound, bound, leaf.shape).astype(leaf.dtype)

    variables = jax.tree_util.tree_map_with_path(draw, shapes.variables)
    opt_state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes.opt_state)
    return TrainState(np.int32(0), **variables, opt_state=opt_state)


def _mesh(num_devices: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:num_devices]), ("data",))


def _compile_step(
    model: RegSeg, mesh: Mesh, augment_fn: AugmentFn = AUGMENT_FN, **options: Any
) -> Step:
    """As training compiles it."""
    step = create_train_step(
        model, TX, LEARNING_RATE_FN, CrossEntropy(), augment_fn, jax.random.key(1), mesh, **options
    )
    return jax.jit(
        step,
        donate_argnums=0,
        out_shardings=replicated(mesh),
        compiler_options=QUICK_COMPILATION,
    )


def _copy(state: TrainState, mesh: Mesh | None = None) -> TrainState:
    return replicate(jax.tree.map(np.copy, state), mesh or _mesh(1))


def _run(step: Step, state: TrainState, batch: dict[str, Array], num_steps: int) -> Any:
    """The last state and the metrics of each step."""
    history = []
    for _ in range(num_steps):
        state, metrics = step(state, batch)
        history.append(jax.device_get(metrics))
    return state, history


@pytest.fixture(scope="module")
def step(model) -> Step:
    """In float32."""
    return _compile_step(model, _mesh(1))


@pytest.fixture(scope="module")
def on_one_device(step, initial_state, batch) -> Any:
    return _run(step, _copy(initial_state), shard_batch(batch, _mesh(1)), 3)


def _flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(tree))])


def test_shapes_of_the_initial_state(model):
    def shapes(model: RegSeg) -> TrainState:
        return jax.eval_shape(lambda: create_train_state(model, TX, jax.random.key(0)))

    full, half = shapes(model), shapes(model.clone(dtype=jnp.float16))
    assert full.step.dtype == jnp.int32
    assert full.dynamic_scale is None
    assert half.dynamic_scale.scale.shape == ()
    assert full.variables == half.variables  # kept in float32 whatever the computation's dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(half.variables)} == {np.dtype("f4")}


def test_a_step_changes_what_it_should(initial_state, on_one_device):
    state, history = on_one_device
    assert state.step == 3
    assert history[0].keys() == {"loss", "learning_rate", "grad_norm", "loss_scale", "skipped"}
    rates = [metrics["learning_rate"] for metrics in history]
    np.testing.assert_allclose(rates, [LEARNING_RATE_FN(i) for i in range(3)], rtol=1e-6)
    assert all(metrics["loss_scale"] == 1 and not metrics["skipped"] for metrics in history)
    assert all(metrics["grad_norm"] > 0 for metrics in history)
    assert 1 < history[0]["loss"] < 4  # ln 11 = 2.4 for a network that knows nothing
    for new, old in zip(
        jax.tree.leaves(state.variables), jax.tree.leaves(initial_state.variables), strict=True
    ):
        assert (np.asarray(new) != old).any()


@pytest.fixture(scope="module")
def run_in_float64(model, initial_state, batch) -> Callable[..., Any]:
    """Three steps on a number of devices, each with as many micro-batches, in float64.

    With for_gpus the operations are those that GPUs compute. In float32 three steps blow the
    rounding of another order of summation up to 1e-3, and an error in the sums over devices would
    not show. Not augmented: every fourth image is the same, so that up to four micro-batches have
    the same batch norm statistics. Their labels differ, and so does the number of labelled pixels.
    """
    images = batch["image"][:2].repeat(4, axis=0)
    labels = batch["label"].copy()
    labels[::2, 20:] = 255

    def normalize_only(images: Array, labels: Array, rng: Array) -> tuple[Array, Array]:
        return images.astype(jnp.float64) / 128 - 1, labels.astype(jnp.int32)

    def widen(leaf: np.ndarray) -> np.ndarray:
        return leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf

    def choose_gpus(*arrays: Array, default: Callable, **lowerings: Callable) -> Any:
        return lowerings.get("cuda", default)(*arrays)

    @functools.cache
    def run(num_devices: int, accumulation_steps: int, *, for_gpus: bool = False) -> Any:
        mesh = _mesh(num_devices)
        choose = choose_gpus if for_gpus else lax.platform_dependent
        with jax.enable_x64(True), mock.patch.object(lax, "platform_dependent", choose):
            step = _compile_step(
                model.clone(dtype=jnp.float64),
                mesh,
                normalize_only,
                accumulation_steps=accumulation_steps,
            )
            state = _copy(jax.tree.map(widen, initial_state), mesh)
            return _run(step, state, shard_batch({"image": images, "label": labels}, mesh), 3)

    return run


def _check_same_steps(
    results: Any, expected: Any, fields: Sequence[str] = ("params", "opt_state", "batch_stats")
) -> None:
    (state, history), (expected_state, expected_history) = results, expected
    for key in ("loss", "grad_norm"):
        values = [metrics[key] for metrics in history]
        np.testing.assert_allclose(values, [m[key] for m in expected_history], rtol=1e-10)
    for name in fields:
        values = _flat(getattr(state, name))
        assert values.dtype == np.float64
        np.testing.assert_allclose(
            values, _flat(getattr(expected_state, name)), rtol=1e-8, atol=1e-10
        )


def test_same_steps_by_the_operations_of_gpus(run_in_float64):
    _check_same_steps(run_in_float64(1, 1, for_gpus=True), run_in_float64(1, 1))


@pytest.mark.parametrize(
    ("num_devices", "accumulation_steps"),
    [(2, 1), (4, 1), pytest.param(1, 4, marks=pytest.mark.slow), (2, 2)],
)
def test_same_steps_on_any_number_of_devices_and_in_micro_batches(
    run_in_float64, num_devices, accumulation_steps
):
    state, history = run_in_float64(num_devices, accumulation_steps)
    # The running variance is the unbiased one, of fewer pixels in a micro-batch.
    fields = ("params", "opt_state", *(("batch_stats",) if accumulation_steps == 1 else ()))
    _check_same_steps((state, history), run_in_float64(1, 1), fields)
    leaves = jax.tree.leaves(state.params)
    assert all(len(leaf.sharding.device_set) == num_devices for leaf in leaves)
    assert all(leaf.sharding.is_fully_replicated for leaf in leaves)


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [2, 8])
def test_same_loss_in_float32(model, initial_state, batch, on_one_device, num_devices):
    mesh = _mesh(num_devices)
    step = _compile_step(model, mesh)
    _, history = _run(step, _copy(initial_state, mesh), shard_batch(batch, mesh), 1)
    np.testing.assert_allclose(history[0]["loss"], on_one_device[1][0]["loss"], rtol=1e-5)


def _primitives_in_loops(jaxpr: Any, *, in_loop: bool = False) -> set[str]:
    names = set()
    for eqn in jaxpr.eqns:
        looped = in_loop or eqn.primitive.name in ("scan", "while")
        names |= {eqn.primitive.name} if looped else set()
        for value in jax.tree.leaves(list(eqn.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                names |= _primitives_in_loops(inner, in_loop=looped)
    return names


def test_only_micro_batches_are_computed_in_a_loop(model, initial_state, batch):
    """XLA's CPU backend is slow at the gradients of convolutions in one."""
    for accumulation_steps, in_loop in ((1, False), (2, True)):
        step = _compile_step(model, _mesh(1), accumulation_steps=accumulation_steps)
        jaxpr = step.trace(_copy(initial_state), shard_batch(batch, _mesh(1))).jaxpr
        assert ("conv_general_dilated" in _primitives_in_loops(jaxpr)) == in_loop


def test_tpus_train_on_columns_as_channels(model, initial_state, batch, monkeypatch):
    shape = "f32[8,64,8,24]"  # of crops of 64 x 64
    for platform in ("cpu", "tpu"):
        monkeypatch.setattr(steps, "choose_width", lambda w, _, p=platform: choose_width(w, p))
        step = _compile_step(model, _mesh(1))
        jaxpr = step.trace(_copy(initial_state), shard_batch(batch, _mesh(1))).jaxpr
        assert (shape in str(jaxpr)) == (platform == "tpu")


def test_the_state_is_donated(step, initial_state, batch, on_one_device):
    state = _copy(initial_state)
    next_state, metrics = step(state, shard_batch(batch, _mesh(1)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert np.isfinite(_flat(next_state)).all()
    assert metrics["loss"] == on_one_device[1][0]["loss"]


def test_bfloat16_is_near_float32(model, initial_state, batch, on_one_device):
    """In the loss of the first step; gradients: see test_mixed_precision.py."""
    step = _compile_step(model.clone(dtype=jnp.bfloat16), _mesh(1))
    state, (metrics,) = _run(step, _copy(initial_state), shard_batch(batch, _mesh(1)), 1)
    expected = on_one_device[1][0]["loss"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=0.02)
    assert metrics["loss"] != expected  # it was another precision
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype("f4")}


@pytest.fixture(scope="module")
def half_step(model) -> Step:
    return _compile_step(model.clone(dtype=jnp.float16), _mesh(1))


def _with_scale(state: TrainState, scale: float) -> TrainState:
    dynamic_scale = DynamicScale(fin_steps=jnp.int32(5), scale=jnp.float32(scale))
    return jax.device_get(state.replace(dynamic_scale=dynamic_scale))


def test_float16_is_near_float32(half_step, initial_state, batch, on_one_device):
    """In the loss of the first step; gradients: see test_mixed_precision.py."""
    state = _with_scale(initial_state, 2.0**10)
    state, history = _run(half_step, _copy(state), shard_batch(batch, _mesh(1)), 3)
    assert not any(metrics["skipped"] for metrics in history)
    assert all(metrics["loss_scale"] == 2**10 for metrics in history)
    assert state.dynamic_scale.fin_steps == 8
    expected = on_one_device[1][0]["loss"]
    np.testing.assert_allclose(history[0]["loss"], expected, rtol=0.005)
    assert history[0]["loss"] != expected


def test_overflow_changes_nothing_but_scale_and_step(half_step, initial_state, batch):
    batch = shard_batch(batch, _mesh(1))
    # From a state with momentum, not from the zeros of the start.
    state, _ = half_step(_copy(_with_scale(initial_state, 2.0**10)), batch)
    state = _with_scale(jax.device_get(state), 2.0**100)
    next_state, metrics = half_step(_copy(state), batch)
    assert metrics["skipped"]
    assert next_state.step == state.step + 1 == 2
    assert next_state.dynamic_scale.scale == metrics["loss_scale"] == 2.0**99
    assert next_state.dynamic_scale.fin_steps == 0
    for name in ("params", "batch_stats", "opt_state"):
        old, new = (jax.tree.leaves(getattr(s, name)) for s in (state, next_state))
        assert len(old) > 10
        for a, b in zip(old, new, strict=True):
            assert a.tobytes() == np.asarray(b).tobytes()
    # It recovers: with a scale that fits, the next step is taken.
    state, metrics = half_step(_copy(_with_scale(next_state, 2.0**8)), batch)
    assert not metrics["skipped"]
    assert np.isfinite(_flat(state)).all()


def test_eval_step_scores_at_the_labels_size_and_ignores(model, initial_state, batch):
    def preprocess(images: Array) -> Array:
        return normalize(images[:, ::2, ::2])  # the model sees another size than the labels'

    labels = batch["label"].copy()
    labels[-1] = 255  # a whole image, as evaluation's fillers are
    mesh = _mesh(8)
    eval_step = jax.jit(
        create_eval_step(model, create_classify_fn(model, preprocess), mesh),
        compiler_options=QUICK_COMPILATION,
    )
    predictions, matrix = eval_step(
        replicate(initial_state.variables, mesh),
        shard_batch({"image": batch["image"], "label": labels}, mesh),
    )
    assert predictions.shape == labels.shape
    assert predictions.dtype == jnp.uint8
    assert len(np.unique(predictions)) > 1
    expected = np.zeros((11, 11), int)
    scored = labels != 255
    np.add.at(expected, (labels[scored], np.asarray(predictions)[scored]), 1)
    np.testing.assert_array_equal(matrix.matrix, expected)
    assert matrix.matrix.sum() == scored.sum() < labels.size


class _LinearModel:
    """Logits and statistics that are one product with the image."""

    dtype = jnp.float32

    def clone(self, *, axis_name: str, upsample: bool) -> "_LinearModel":
        return self

    def apply(self, variables: dict, images: Array, *, train: bool, mutable: list[str]) -> Any:
        assert train
        assert mutable == ["batch_stats"]
        mean = variables["batch_stats"]["mean"]
        stats = {"mean": mean + 0.1 * (jax.lax.pmean(images.mean((0, 1, 2)), "data") - mean)}
        return images @ variables["params"]["classifier"]["kernel"], {"batch_stats": stats}


TX_OF_HALF = create_optimizer(lambda step: 0.5, 0.0)


def _compile_linear_step(num_devices: int = 1, loss_fn: Any = None, **options: Any) -> Step:
    return jax.jit(
        create_train_step(
            _LinearModel(),
            TX_OF_HALF,
            lambda step: 0.5,
            loss_fn or CrossEntropy(),
            lambda images, labels, rng: (images / 255, labels.astype(jnp.int32)),
            jax.random.key(0),
            _mesh(num_devices),
            ema_decay=0.25,
            **options,
        )
    )


def _linear_state(num_devices: int = 1) -> TrainState:
    kernel = np.random.default_rng(0).standard_normal((3, 11)).astype(np.float32)
    variables = {
        "params": {"classifier": {"kernel": kernel}},
        "batch_stats": {"mean": np.zeros(3, np.float32)},
    }
    state = start_from(_LinearModel(), TX_OF_HALF, variables, with_ema=True)
    return replicate(state, _mesh(num_devices))


def test_the_average_follows_weights_and_statistics(batch):
    step, state = _compile_linear_step(), _linear_state()
    expected = jax.device_get(state.variables)
    for decay in (1 / 10, 2 / 11, 0.25, 0.25):  # (1 + t) / (10 + t), then the one asked for
        state, _ = step(state, batch)
        expected = jax.tree.map(
            lambda average, new, d=decay: d * average + (1 - d) * new, expected, state.variables
        )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5), state.ema_variables, expected
    )
    for average, new in zip(
        jax.tree.leaves(expected), jax.tree.leaves(state.variables), strict=True
    ):
        assert np.abs(average - new).max() > 1e-4
    assert (
        start_from(_LinearModel(), TX_OF_HALF, jax.device_get(state.variables)).ema_variables
        is None
    )


@pytest.fixture(scope="module")
def uneven_batch(batch) -> dict[str, np.ndarray]:
    """Some images without labels, and some with few."""
    labels = batch["label"].copy()
    labels[0], labels[1::4, 10:] = 255, 255
    return {"image": batch["image"], "label": labels}


@pytest.mark.parametrize("num_devices", [1, 2])
@pytest.mark.parametrize(
    "loss_fn",
    [
        CrossEntropy(tuple(np.linspace(0, 3, 11))),
        BootstrappedCrossEntropy(min_pixels=5000),  # of 12000 labelled ones
        BootstrappedCrossEntropy(min_pixels=50),
    ],
    ids=["weighted", "largest", "above_threshold"],
)
def test_micro_batches_make_the_step_of_the_whole_batch(uneven_batch, num_devices, loss_fn):
    """Where no batch norm is: loss, gradients, running statistics, averaged weights."""

    def run(num_devices: int, accumulation_steps: int) -> Any:
        step = _compile_linear_step(num_devices, loss_fn, accumulation_steps=accumulation_steps)
        batch = shard_batch(uneven_batch, _mesh(num_devices))
        return jax.device_get(_run(step, _linear_state(num_devices), batch, 2))

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        run(num_devices, 4),
        run(1, 1),
    )


def test_micro_batches_share_a_loss_scale(uneven_batch):
    step = _compile_linear_step(accumulation_steps=4)
    plain, _ = step(_linear_state(), uneven_batch)
    state, metrics = step(_with_scale(_linear_state(), 2.0**20), uneven_batch)
    np.testing.assert_allclose(_flat(state.params), _flat(plain.params), rtol=1e-5, atol=1e-6)
    assert state.dynamic_scale.fin_steps == 6  # one more
    assert metrics["loss_scale"] == 2**20
    assert not metrics["skipped"]

    images = uneven_batch["image"].astype(np.float32)
    images[1] *= 1e20  # in one of the four
    before = _with_scale(state, 2.0**100)
    after, metrics = step(before, {**uneven_batch, "image": images})
    assert metrics["skipped"]
    assert after.dynamic_scale.scale == 2.0**99  # halved once
    assert after.dynamic_scale.fin_steps == 0
    np.testing.assert_array_equal(_flat(after.params), _flat(before.params))


@pytest.mark.parametrize("num_devices", [1, 2])
def test_images_are_augmented_the_same_in_parts(batch, num_devices):
    sizes = np.linspace((30, 40), (48, 64), 8).astype(np.int32)
    batch = shard_batch({**batch, "size": sizes}, _mesh(num_devices))
    augment_parts = jax.jit(functools.partial(augment_batch, AUGMENT_FN), static_argnums=3)
    rng = jax.random.key(3)
    expected, result = (augment_parts(batch, rng, jnp.int32(5), parts) for parts in (1, 4))
    np.testing.assert_allclose(result[0], expected[0], atol=1e-3)  # a grey level is 17 times more
    np.testing.assert_array_equal(result[1], expected[1])


def test_an_image_s_micro_batch_does_not_depend_on_the_number_of_devices():
    images = np.arange(16)
    expected = {frozenset(part.tolist()) for part in split_batch(images, 2)}
    assert expected == {frozenset(range(0, 16, 2)), frozenset(range(1, 16, 2))}
    for num_devices in (2, 4):
        shards = [split_batch(shard, 2) for shard in np.split(images, num_devices)]
        parts = np.concatenate(shards, axis=1)
        assert {frozenset(part.tolist()) for part in parts} == expected


class _OneNorm(nn.Module):
    """Batch norm and a classifier, to see whose statistics they are."""

    dtype = jnp.float32
    axis_name: str | None = None
    upsample: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        x = BatchNorm(axis_name=self.axis_name, name="bn")(x, train=train)
        return Conv(11, name="classifier")(x)


def test_batch_norm_per_device_averages_the_statistics_of_each_devices_images(batch):
    def run(
        batch: dict[str, np.ndarray],
        num_devices: int,
        *,
        per_device: bool,
        accumulation_steps: int = 1,
    ) -> Any:
        mesh = _mesh(num_devices)
        step = create_train_step(
            _OneNorm(),
            TX,
            LEARNING_RATE_FN,
            CrossEntropy(),
            lambda images, labels, rng: (images / 255, labels.astype(jnp.int32)),
            jax.random.key(0),
            mesh,
            batch_norm_per_device=per_device,
            accumulation_steps=accumulation_steps,
        )
        state = replicate(create_train_state(_OneNorm(), TX, jax.random.key(0)), mesh)
        state, metrics = jax.jit(step)(state, shard_batch(batch, mesh))
        return state.batch_stats["bn"], metrics["loss"]

    rng = np.random.default_rng(0)
    brighter = (batch["image"] // 2 + rng.integers(0, 2, (8, 1, 1, 1)) * 90).astype(np.uint8)
    batch = {"image": brighter, "label": batch["label"]}
    halves = [
        run({name: x[part] for name, x in batch.items()}, 1, per_device=False)
        for part in (slice(0, 4), slice(4, 8))
    ]
    stats, loss = run(batch, 2, per_device=True)
    expected, expected_loss = jax.tree.map(lambda *pair: np.mean(pair, axis=0), *halves)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), stats, expected)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)  # as many pixels in both halves
    # One device goes on with the statistics that two had.
    stats_of_one, loss_of_one = run(batch, 1, per_device=True, accumulation_steps=2)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), stats_of_one, stats)
    np.testing.assert_allclose(loss_of_one, loss, rtol=1e-5)
    synchronised, _ = run(batch, 2, per_device=False)
    assert np.abs(synchronised["var"] - stats["var"]).max() > 1e-4


class _MeanModel:
    """Logits that depend on the left neighbour: a mirrored image gives others."""

    def apply(self, variables: float, x: Array, *, train: bool) -> Array:
        assert not train
        return variables * (x + 0.5 * jnp.roll(x, 1, axis=2))


def test_scores_over_scales_and_mirrored_images_are_mean_probabilities():
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
    model, size = _MeanModel(), (16, 24)

    def score(images: np.ndarray, **options: Any) -> Array:
        score_fn = create_score_fn(model, lambda x: x, **options)
        return jax.jit(score_fn, static_argnums=2)(2.0, images, size)

    def upsample(x: Array) -> Array:
        return jax.image.resize(x, (2, *size, 3), "bilinear")

    logits = score(images)
    np.testing.assert_allclose(
        logits, upsample(model.apply(2.0, images, train=False)), rtol=1e-5, atol=1e-6
    )
    both = score(images, scales=(1.0, 1.5), flip=True)
    np.testing.assert_allclose(both.sum(-1), 1, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        both,
        score(images[:, :, ::-1], scales=(1.0, 1.5), flip=True)[:, :, ::-1],
        rtol=1e-5,
        atol=1e-6,
    )
    large = jax.image.resize(images, (2, 12, 18, 3), "bilinear")
    expected = [
        jax.nn.softmax(upsample(model.apply(2.0, x[:, :, ::flip], train=False))[:, :, ::flip])
        for x in (images, large)
        for flip in (1, -1)
    ]
    np.testing.assert_allclose(both, sum(expected) / 4, rtol=1e-5, atol=1e-6)


def test_six_steps_as_the_author():
    """Losses and parameters of six steps of the author's training code, in float64.

    Float32 parts from float64 by 5e-3 in these losses, in the author's code as in this.
    """
    golden = author.load("training")
    state_dict = author.create_state_dict("exp48_decoder26")
    state_dict = {name: values.astype(np.float64) for name, values in state_dict.items()}
    images, labels = author.create_inputs()
    batch = {
        "image": images["odd"].transpose(0, 2, 3, 1)[:, :192, :256],  # normalised already
        "label": labels[:, :192, :256].astype(np.int32),
    }
    with jax.enable_x64(True):
        model = create_model("exp48_decoder26", 19, jnp.float64)
        variables = from_torch(state_dict, model)
        learning_rate_fn = create_learning_rate_fn(0.05, 10, 3)
        tx = create_optimizer(learning_rate_fn, 1e-4)
        step = create_train_step(
            model,
            tx,
            learning_rate_fn,
            CrossEntropy(),
            lambda images, labels, rng: (images.astype(jnp.float64), labels),
            jax.random.key(0),
            _mesh(1),
        )
        opt_state = tx.init(variables["params"])
        state = TrainState(jnp.int32(0), **variables, opt_state=opt_state)
        step = jax.jit(step, compiler_options=QUICK_COMPILATION)
        state, history = _run(step, state, batch, 6)
    losses = [metrics["loss"] for metrics in history]
    np.testing.assert_allclose(losses, golden["ce_f64_losses"], rtol=1e-6)
    arrays = to_torch(state.variables)
    norms = [np.linalg.norm(arrays[name]) for name in golden["param_names"]]
    np.testing.assert_allclose(norms, golden["ce_f64_param_norms"], rtol=1e-5)
