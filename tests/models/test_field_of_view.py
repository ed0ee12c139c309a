import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regseg_jax.models import field_of_view, variants
from regseg_jax.models.variants import Backbone, Block
from regseg_jax.ops.conv import grouped_conv

# As in the paper's table, except for two: its 607 for regnety600mf does not follow from the
# author's network, and exp53, which has exp48's rates, has four blocks more before 1/16.
FIELDS_OF_VIEW = {
    "exp30": 3263,
    "exp43": 3743,
    "exp46": 3295,
    "exp47": 4127,
    "exp48": 3807,
    "exp49": 3807,
    "exp50": 3743,
    "exp51": 3743,
    "exp52": 2207,
    "exp53": 3863,
    "regnety600mf": 479,
    "searched": 2399,
}

# Chains of (rate, stride) behind the stem; each rate leaves no gaps.
CHAINS = [
    [(1, 1)],
    [(1, 2)],
    [(1, 1), (3, 1)],
    [(1, 2), (1, 2), (1, 1)],
    [(1, 1), (2, 2), (3, 1), (1, 2)],
    [(1, 2), (1, 2), (1, 1), (2, 1), (4, 1)],
]


def make_backbone(chain):
    return Backbone(stages=(("stage", tuple(Block(16, (rate,), s) for rate, s in chain)),))


def count_pixels(chain):
    """The offsets, along one axis, of the pixels that one output of stem and chain depends on."""
    offsets = {0}
    for rate, stride in reversed([(1, 2), *chain]):
        offsets = {stride * offset + tap for offset in offsets for tap in (-rate, 0, rate)}
    return offsets


def has_gaps(offsets):
    return len(offsets) < max(offsets) - min(offsets) + 1


@pytest.mark.parametrize(("name", "expected"), FIELDS_OF_VIEW.items())
def test_field_of_view_of_every_backbone(name, expected):
    assert field_of_view.compute_field_of_view(variants.BACKBONES[name]) == expected


def test_every_backbone_has_an_expected_field_of_view():
    assert set(FIELDS_OF_VIEW) == set(variants.BACKBONES)


@pytest.mark.parametrize("chain", CHAINS)
def test_field_of_view_counted_tap_by_tap(chain):
    offsets = count_pixels(chain)
    assert not has_gaps(offsets)
    assert field_of_view.compute_field_of_view(make_backbone(chain)) == len(offsets)


@pytest.mark.parametrize("chain", CHAINS)
def test_bound_counted_tap_by_tap(chain):
    last = field_of_view.trace_field_of_view(make_backbone([*chain, (1, 1)]))[-1]
    bound = last.max_dilation_rate
    assert bound >= 1
    assert not has_gaps(count_pixels([*chain, (bound, 1)]))
    assert has_gaps(count_pixels([*chain, (bound + 1, 1)]))


def test_field_of_view_of_real_convolutions():
    chain = [(1, 2), (1, 1), (3, 1)]
    size, kernel = 48, jnp.ones((3, 3, 1, 1))

    def centre(image):
        x = grouped_conv(image, kernel, stride=2)
        for rate, stride in chain:
            x = grouped_conv(x, kernel, stride=stride, dilation_rate=rate)
        return x[0, x.shape[1] // 2, x.shape[2] // 2, 0]

    gradient = jax.jit(jax.grad(centre))(jnp.zeros((1, size, size, 1)))
    seen = np.argwhere(gradient)
    sides = np.ptp(seen, axis=0)[1:3] + 1
    assert sides.tolist() == 2 * [field_of_view.compute_field_of_view(make_backbone(chain))]


def test_trace_of_regseg():
    layers = field_of_view.trace_field_of_view(variants.BACKBONES["exp48"])
    assert [layer.name for layer in layers[:7]] == [
        *("stem", "stage4", "stage8_0", "stage8_1", "stage8_2", "stage16_0", "stage16_1")
    ]
    assert [layer.stride_before for layer in layers[:7]] == [1, 2, 4, 8, 8, 8, 16]
    assert [layer.field_of_view_after for layer in layers[:7]] == [3, 7, 15, 31, 47, 63, 95]
    assert layers[-1] == field_of_view.LayerFieldOfView(
        name="stage16_13",
        dilation_rates=(1, 14),
        stride_before=16,
        stride_after=16,
        field_of_view_before=3359,
        field_of_view_after=3807,
    )
    assert layers[-1].max_dilation_rate == 209  # floor(3359 / 16)


def test_branches_widen_by_the_largest_rate():
    one = Backbone(stages=(("stage", (Block(16, (3,)),)),))
    two = Backbone(stages=(("stage", (Block(16, (3, 1)),)),))
    assert field_of_view.compute_field_of_view(one) == field_of_view.compute_field_of_view(two)


def test_find_gaps_names_the_layer_and_its_rates():
    (gap,) = field_of_view.find_gaps(variants.BACKBONES["exp30"])
    assert gap.name == "stage16_1"
    assert gap.max_dilation_rate == 3  # floor(63 / 16)
    assert gap.rates_with_gaps == (4,)


def test_gaps_are_described_with_the_largest_rate_without():
    (warning,) = field_of_view.describe_gaps(variants.BACKBONES["exp30"])
    assert "stage16_1 has gaps" in warning
    assert "at rate 4; the largest rate without is 3" in warning
    assert field_of_view.describe_gaps(variants.BACKBONES["exp48"]) == ()


@pytest.mark.parametrize("name", sorted(set(variants.BACKBONES) - {"exp30"}))
def test_no_other_backbone_has_gaps(name):
    assert field_of_view.find_gaps(variants.BACKBONES[name]) == ()


@pytest.mark.parametrize("name", ["exp30", "exp48", "searched"])
def test_bounds_agree_with_the_trace(name):
    layers = field_of_view.trace_field_of_view(variants.BACKBONES[name])[-13:]
    bounds = field_of_view.compute_bounds(
        [max(layer.dilation_rates) for layer in layers], layers[0].field_of_view_before, stride=16
    )
    assert bounds == tuple(layer.max_dilation_rate for layer in layers)


def test_bounds_of_real_numbers():
    # Fields of view 63, 63 + 32 * 1.5 = 111, 111 + 32 * 2.25 = 183.
    assert field_of_view.compute_bounds([1.5, 2.25, 4.0], 63, stride=16) == (3, 6.0, 11.0)


def test_bounds_under_jit():
    compute = jax.jit(lambda rates: jnp.stack(field_of_view.compute_bounds(rates, 63, stride=16)))
    assert compute(jnp.array([1.5, 2.25, 4.0])).tolist() == [3, 6, 11]
