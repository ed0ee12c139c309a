import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax.traverse_util import flatten_dict
from golden import author

from regseg_jax.models.regseg import create_model
from regseg_jax.training.optimizer import create_learning_rate_fn, create_optimizer, decay_mask


def test_learning_rate_at_known_steps():
    rate = create_learning_rate_fn(0.5, 100, 10, warmup_factor=0.2, power=2.0)
    assert float(rate(0)) == pytest.approx(0.5 * 0.2)
    assert float(rate(5)) == pytest.approx(0.5 * 0.6 * 0.95**2)
    assert float(rate(10)) == pytest.approx(0.5 * 0.9**2)
    assert float(rate(50)) == pytest.approx(0.5 * 0.25)
    assert float(rate(100)) == 0
    assert float(rate(150)) == 0  # past the end, not NaN


def test_learning_rate_without_warm_up():
    rate = create_learning_rate_fn(0.1, 10, 0)
    assert float(rate(0)) == pytest.approx(0.1)
    assert float(rate(5)) == pytest.approx(0.1 * 0.5**0.9)


def test_learning_rate_of_a_traced_step():
    rate = create_learning_rate_fn(0.05, 10_000, 1000)
    steps = jnp.array([0, 3, 999, 1000, 9999], jnp.int32)
    traced = jax.jit(jax.vmap(rate))(steps)
    assert traced.dtype == jnp.float32
    np.testing.assert_allclose(traced, [rate(int(step)) for step in steps], rtol=1e-3)


@pytest.mark.parametrize(
    ("schedule", "key"),
    [("poly", "poly"), ("cosine", "cosine"), ("step", "step"), ("exponential", "exp")],
)
def test_schedules_as_the_authors(schedule, key):
    golden = author.load("training")
    factor = create_learning_rate_fn(1.0, 10_000, 1000, schedule=schedule)
    factors = [factor(int(step)) for step in golden["schedule_steps"]]
    np.testing.assert_allclose(factors, golden[f"schedule_{key}"], rtol=1e-4, atol=1e-7)


def test_learning_rates_as_the_authors():
    golden = author.load("training")
    rate = create_learning_rate_fn(0.05, 10, 3)
    np.testing.assert_allclose(
        [rate(step) for step in range(6)], golden["learning_rates"], rtol=1e-5
    )


def test_the_step_schedule_drops_at_89_and_96_percent():
    rate = create_learning_rate_fn(1.0, 100_000, 0, schedule="step")
    steps = (0, 88_999, 89_000, 95_999, 96_000, 99_999)
    np.testing.assert_allclose([rate(step) for step in steps], [1, 1, 0.1, 0.1, 0.01, 0.01])


def test_decay_leaves_out_batch_norm_alone():
    model = create_model("exp48_decoder26", 19)
    params = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    )["params"]
    mask = flatten_dict(decay_mask(params))
    shapes = {path: leaf.shape for path, leaf in flatten_dict(params).items()}
    assert mask.keys() == shapes.keys()
    # By their siblings: a scale and a bias of one module are batch norm's.
    batch_norm = {path for path in shapes if (*path[:-1], "scale") in shapes}
    assert {path for path, decays in mask.items() if not decays} == batch_norm
    assert len(batch_norm) % 2 == 0
    biases = [path for path in mask if path[-1] == "bias" and path not in batch_norm]
    # The classifier's, and two of squeeze-and-excite in each of the 18 blocks.
    assert len(biases) == 1 + 2 * 18
    assert all(mask[path] for path in biases)


def _small_params() -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    shapes = {
        "conv": {"kernel": (3, 3, 2, 4)},
        "bn": {"scale": (4,), "bias": (4,)},
        "gate_bn": {"scale": (4,), "bias": (4,)},
        "classifier": {"kernel": (1, 1, 4, 5), "bias": (5,)},
    }
    return jax.tree.map(
        lambda shape: rng.standard_normal(shape).astype(np.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def test_steps_as_torch_sgd():
    """Momentum, decay and a moving learning rate over several steps."""
    params = {"block": _small_params()}
    flat = flatten_dict(params)
    tensors = {path: torch.tensor(value, requires_grad=True) for path, value in flat.items()}
    decayed = [t for path, t in tensors.items() if "bn" not in path[1]]
    others = [t for path, t in tensors.items() if "bn" in path[1]]
    sgd = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others}], lr=1.0, momentum=0.9
    )
    rate = create_learning_rate_fn(0.2, 8, 3)
    tx = create_optimizer(rate, weight_decay=0.1, momentum=0.9)
    opt_state = tx.init(params)
    rng = np.random.default_rng(1)
    for step in range(6):
        grads = jax.tree.map(lambda p: rng.standard_normal(p.shape).astype(np.float32), params)
        updates, opt_state = tx.update(grads, opt_state, params, step=step)
        params = optax.apply_updates(params, updates)

        for path, grad in flatten_dict(grads).items():
            tensors[path].grad = torch.tensor(grad)
        for group in sgd.param_groups:
            group["lr"] = float(rate(step))
        sgd.step()
        for path, value in flatten_dict(params).items():
            np.testing.assert_allclose(value, tensors[path].detach(), rtol=1e-5, atol=1e-6)


def test_the_state_has_the_paths_of_earlier_checkpoints():
    params = {"block": _small_params()}
    state = create_optimizer(lambda step: 0.1, weight_decay=0.1).init(params)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    expected = jax.tree_util.tree_leaves_with_path(params)
    assert paths == [f"[1].trace{jax.tree_util.keystr(path)}" for path, _ in expected]


def test_the_schedule_follows_the_given_step_not_the_calls():
    """So that a step skipped under loss scaling does not delay it."""
    params, grads = {"a": {"bias": jnp.ones(2)}}, {"a": {"bias": jnp.full(2, 3.0)}}
    tx = create_optimizer(lambda step: 0.5 * step, weight_decay=0.0, momentum=0.0)
    state = tx.init(params)
    for step in (4, 4, 1):
        updates, state = jax.jit(tx.update)(grads, state, params, step=step)
        np.testing.assert_allclose(updates["a"]["bias"], -0.5 * step * 3.0)
