import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from regseg_jax.models import field_of_view, variants
from regseg_jax.models.blocks import DilatedConv
from regseg_jax.models.regseg import RegSeg
from regseg_jax.models.searched_conv import RelaxedConv, SearchedConv
from regseg_jax.models.searched_model import clamp_rates, create_search_model, searched_layers
from regseg_jax.training.optimizer import create_optimizer
from regseg_jax.training.rate_search import (
    ContinuousSearch,
    RelaxedSearch,
    compute_tap_width,
    compute_temperature,
)


@pytest.fixture(scope="module")
def search_model(small_variant) -> RegSeg:
    return create_search_model(
        small_variant, 11, jnp.float32, method="continuous", num_branches=2, rate=3
    )


@pytest.fixture(scope="module")
def rate_search(search_model) -> ContinuousSearch:
    layers = searched_layers(search_model.variant.backbone)
    return ContinuousSearch(layers, learning_rate=0.5, warmup_steps=4, num_steps=14, tap_width=4.0)


def _tree(layers, rates, kernel):
    blocks = {
        layer.name: {
            "conv2": {
                "dilation_rates": jnp.array(r),
                "tap_width": jnp.float32(1),
                "convs_0": {"kernel": kernel},
            }
        }
        for layer, r in zip(layers, rates, strict=True)
    }
    return {"backbone": blocks}


def test_the_blocks_at_16_are_searched(search_model):
    layers = searched_layers(search_model.variant.backbone)
    assert [layer.name for layer in layers] == ["stage16_1", "stage16_2"]
    # Fields of view 31, then 31 + 2 * 16 * 1 = 63: the first starts at its bound, not at 3.
    assert [layer.dilation_rates for layer in layers] == [(1, 1), (3, 3)]
    assert [layer.max_dilation_rate for layer in layers] == [1, 3]


@pytest.mark.parametrize("name", ["exp30", "exp48", "exp53", "regnety600mf"])
def test_every_backbone_can_be_searched_from_any_rate(name):
    variant = variants.get_variant(f"{name}_decoder26")
    model = create_search_model(
        variant, 19, jnp.float32, method="continuous", num_branches=2, rate=9
    )
    assert field_of_view.find_gaps(model.variant.backbone) == ()
    rates = variants.get_dilation_rates(model.variant.backbone)
    assert {len(block) for block in rates} == {2}
    assert rates[-1] == (9, 9)


def test_branches_that_do_not_divide_are_refused():
    variant = variants.get_variant("exp48_decoder26")
    with pytest.raises(ValueError, match="block 0 has 3 rates; its 256 channels in groups of 16"):
        create_search_model(variant, 19, jnp.float32, num_branches=3, method="continuous", rate=1)


def test_rates_are_clamped_to_a_bound_that_moves_with_those_before():
    # 63: at most 3, then 63 + 32 * 2.5 = 143: 8; 143 + 32 * 8 = 399: 24.
    rates = jnp.array([[0.3, 2.5], [100.0, 1.5], [24.9, 7.0]])
    expected = [[1, 2.5], [8, 1.5], [24, 7]]
    np.testing.assert_array_equal(jax.jit(clamp_rates, static_argnums=1)(rates, 63), expected)
    whole = clamp_rates(jnp.array([[4, 1], [9, 9]]), 63)
    assert whole.dtype == jnp.int32
    assert whole.tolist() == [[3, 1], [9, 9]]


def test_rounding_keeps_under_the_bound_and_sorts(rate_search):
    # 2.5 rounds to 2: the bound behind it falls from 8 to 7.
    search = ContinuousSearch(
        searched_layers(variants.BACKBONES["exp48"])[:3], 0.1, warmup_steps=0, num_steps=1
    )
    rates = np.array([[2.5, 1.2], [8.0, 3.4], [5.5, 5.4]], np.float32)
    assert search.round_rates(rates) == ((1, 2), (3, 7), (5, 6))
    assert search.compute_bounds(rates).tolist() == [3, 8, 24]


def test_the_rates_learning_rate(rate_search):
    rates = [float(rate_search.learning_rate_fn(step)) for step in (0, 3, 4, 9, 14)]
    np.testing.assert_allclose(rates, [0, 0, 0.5, 0.25, 0])


def _weights_optimizer():
    return create_optimizer(lambda step: 0.1, weight_decay=0.1, momentum=0.9)


def _without_search(tree):
    return {path: leaf for path, leaf in flatten_dict(tree).items() if path[-1] == "kernel"}


@pytest.mark.parametrize(
    # At step 4 the first block stays at its bound of 1, and the last rate is stopped by 3.
    ("step", "expected_rates"),
    [(0, [[1, 1], [2, 2.75]]), (4, [[1, 1], [2.5, 3]])],
)
def test_an_update_ends_at_rates_under_the_bound_and_the_steps_tap_width(
    rate_search, step, expected_rates
):
    params = _tree(rate_search.layers, [[1.0, 1.0], [2.0, 2.75]], jnp.full((2,), 5.0))
    grads = _tree(rate_search.layers, [[-1e-3, 1.0], [-0.5, -4.0]], jnp.ones((2,)))
    tx, weights_tx = rate_search.create_optimizer(_weights_optimizer()), _weights_optimizer()
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params, step=jnp.int32(step))
    moved = optax.apply_updates(params, updates)
    assert jax.tree.structure(moved) == jax.tree.structure(params)
    # Adam's first step is the sign of the gradient, times the rates' learning rate; no decay.
    np.testing.assert_allclose(rate_search.fetch_rates(moved), expected_rates, rtol=1e-5)
    assert rate_search.fetch_rates(moved).max() == max(max(block) for block in expected_rates)
    tap_widths = [leaf for path, leaf in flatten_dict(moved).items() if "tap_width" in path]
    np.testing.assert_array_equal(tap_widths, [4, 4])
    # The weights have the run's optimizer, with its decay.
    expected, _ = weights_tx.update(grads, weights_tx.init(params), params, step=step)
    for path, update in _without_search(expected).items():
        np.testing.assert_allclose(update, -0.1 * (1 + 0.1 * 5))
        np.testing.assert_allclose(flatten_dict(updates)[path], update, rtol=1e-6)


def test_the_state_has_the_paths_of_earlier_checkpoints(rate_search):
    params = _tree(rate_search.layers, [[3.0, 4.0], [5.0, 6.0]], jnp.full((2,), 5.0))
    state = rate_search.create_optimizer(_weights_optimizer()).init(params)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    inner, block = ".inner_states[{!r}].inner_state", "['backbone'][{!r}]['conv2']"
    rates, weights = inner.format("dilation_rates"), inner.format("weights")
    blocks = [block.format(layer.name) for layer in rate_search.layers]
    assert paths == [
        f"{rates}.count",
        *(f"{rates}.{moment}{b}['dilation_rates']" for moment in ("mu", "nu") for b in blocks),
        *(f"{weights}[1].trace{b}['convs_0']['kernel']" for b in blocks),
    ]


def test_taps_narrow_from_the_end_of_the_warm_up_to_the_middle_of_the_search():
    widths = [float(compute_tap_width(4.0, progress)) for progress in (-1, 0, 0.25, 0.5, 1)]
    np.testing.assert_allclose(widths, [4, 4, 2, 1, 1], rtol=1e-6)


def test_candidates_sharpen_in_the_second_half_of_the_search():
    values = [float(compute_temperature(0.01, progress)) for progress in (-1, 0.4, 0.6, 0.8, 1)]
    np.testing.assert_allclose(values, [1, 1, 0.1, 0.01, 0.01], rtol=1e-6)


@pytest.fixture(scope="module")
def relaxed_search(small_variant) -> RelaxedSearch:
    model = create_search_model(
        small_variant, 11, jnp.float32, method="relaxed", num_branches=2, rate=5
    )
    layers = searched_layers(model.variant.backbone)
    return RelaxedSearch(layers, 0.5, warmup_steps=4, num_steps=14, temperature=0.01)


def _relaxed_tree(logits, kernel):
    names = ("stage16_1", "stage16_2")
    return {
        "backbone": {
            name: {
                "conv2": {
                    "rate_logits": jnp.array(block),
                    "temperature": jnp.float32(1),
                    "convs_0": {"kernel": kernel},
                }
            }
            for name, block in zip(names, logits, strict=True)
        }
    }


def test_candidates_reach_to_the_bound_and_to_the_largest_asked_for(relaxed_search):
    # The bound is 1; behind a rate of 1 it is 3, see above.
    assert [max(layer.dilation_rates) for layer in relaxed_search.layers] == [1, 3]


def test_the_likeliest_candidates_under_the_bound_are_found():
    layers = searched_layers(variants.BACKBONES["exp48"])[:2]  # bounds 3, then at most 9
    search = RelaxedSearch(layers, 0.1, warmup_steps=0, num_steps=1)
    # The likeliest of the second block, 8 and 9, are only legal behind a 3.
    second = np.array([8 * [0] + [1], 4 * [0] + [2, 0, 0, 3, 0]], np.float32)
    for first, expected in (
        ([[0, 1, 0], [0, 0, 1]], [[2, 3], [9, 8]]),
        ([[1, 0, 0], [0, 1, 0]], [[1, 2], [1, 5]]),
    ):
        params = _relaxed_tree([first, second], jnp.ones(2))
        params["backbone"] = dict(
            zip((layer.name for layer in layers), params["backbone"].values(), strict=True)
        )
        assert search.fetch_rates(params).tolist() == expected
        assert search.round_rates(search.fetch_rates(params)) == tuple(
            tuple(sorted(block)) for block in expected
        )
    named = search.named_rates(params)
    assert named[f"search/{layers[1].name}/bound"] == 7
    expected = np.exp(3) / (7 + np.exp(2) + np.exp(3))
    assert named[f"search/{layers[1].name}/probability_1"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("step", "moved", "temperature"), [(0, 0, 1), (4, 0.5, 1), (10, 0.2, 0.1)])
def test_logits_move_after_the_warm_up_and_each_step_has_its_temperature(
    relaxed_search, step, moved, temperature
):
    params = _relaxed_tree([np.zeros((2, 1)), np.zeros((2, 3))], jnp.full((2,), 5.0))
    grads = _relaxed_tree([np.zeros((2, 1)), [[1.0, -2.0, 0.0], [0.0, 0.0, 3.0]]], jnp.ones((2,)))
    tx = relaxed_search.create_optimizer(_weights_optimizer())
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params, step=jnp.int32(step))
    block = optax.apply_updates(params, updates)["backbone"]["stage16_2"]["conv2"]
    expected = moved * np.array([[-1, 1, 0], [0, 0, -1]])
    np.testing.assert_allclose(block["rate_logits"], expected, rtol=1e-5)
    np.testing.assert_allclose(block["temperature"], temperature, rtol=1e-5)
    np.testing.assert_allclose(block["convs_0"]["kernel"], 5 - 0.1 * (1 + 0.1 * 5), rtol=1e-6)


def test_a_relaxed_convolution_of_one_likely_candidate_is_the_dilated_one():
    x = jax.random.normal(jax.random.key(0), (2, 9, 11, 32))
    relaxed = RelaxedConv(features=32, dilation_rates=(3, 3), group_width=8)
    params = relaxed.init(jax.random.key(1), x)["params"]
    shapes = {path: leaf.shape for path, leaf in flatten_dict(params).items()}
    kernel = (3, 3, 3, 8, 16)
    assert shapes == {
        ("rate_logits",): (2, 3),
        ("temperature",): (),
        ("convs_0", "kernel"): kernel,
        ("convs_1", "kernel"): kernel,
    }
    kernels = [params[f"convs_{i}"]["kernel"] for i in range(2)]
    assert float(kernels[0].std()) == pytest.approx((3 * 9 * 8) ** -0.5, rel=0.1)
    params["rate_logits"] = jnp.array([[0, 0, 50.0], [0, 50.0, 0]])
    fixed = DilatedConv(features=32, dilation_rates=(3, 2), group_width=8)
    chosen = {f"convs_{i}": {"kernel": kernels[i][k]} for i, k in enumerate((2, 1))}
    expected = fixed.apply({"params": chosen}, x)
    np.testing.assert_allclose(relaxed.apply({"params": params}, x), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_at_whole_rates_the_searched_model_is_the_fixed_one(small_variant):
    rates = [[1, 1], [2, 3]]
    fixed = RegSeg(
        variants.Variant(
            "fixed", variants.replace_dilation_rates(small_variant.backbone, rates), "decoder12"
        ),
        num_classes=11,
    )
    variant = variants.Variant("small_decoder12", small_variant.backbone, "decoder12")
    searched = create_search_model(
        variant, 11, jnp.float32, method="continuous", num_branches=2, rate=1
    )
    images = jax.random.normal(jax.random.key(0), (2, 64, 96, 3))
    variables = jax.jit(functools.partial(fixed.init, train=False))(jax.random.key(1), images)
    params = flatten_dict(variables["params"])
    for name, block in zip(("stage16_1", "stage16_2"), rates, strict=True):
        params["backbone", name, "conv2", "dilation_rates"] = jnp.array(block, jnp.float32)
        params["backbone", name, "conv2", "tap_width"] = jnp.float32(1)
    params = unflatten_dict(params)

    def loss(model, params):
        variables_ = {"params": params, "batch_stats": variables["batch_stats"]}
        return jnp.square(model.apply(variables_, images, train=False)).mean()

    expected, expected_grads = jax.jit(jax.value_and_grad(functools.partial(loss, fixed)))(
        variables["params"]
    )
    actual, grads = jax.jit(jax.value_and_grad(functools.partial(loss, searched)))(params)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    flat = flatten_dict(grads)
    for path, grad in flatten_dict(expected_grads).items():
        difference = optax.tree.norm(flat.pop(path) - grad)
        assert difference <= 1e-4 * (optax.tree.norm(grad) + 1e-3), path
    assert {path[-1] for path in flat} == {"dilation_rates", "tap_width"}
    for path, grad in flat.items():
        assert (jnp.abs(grad).max() > 0) == (path[-1] == "dilation_rates"), path


@pytest.mark.parametrize("searched_conv", [SearchedConv, RelaxedConv])
def test_a_searched_convolution_with_a_stride_is_refused(searched_conv):
    conv = searched_conv(features=32, dilation_rates=(1, 2), group_width=16, stride=2)
    with pytest.raises(ValueError, match="stride is 2"):
        conv.init(jax.random.key(0), jnp.zeros((1, 8, 8, 32)))
