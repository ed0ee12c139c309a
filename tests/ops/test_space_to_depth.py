import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regseg_jax.models.regseg import RegSeg
from regseg_jax.models.variants import Backbone, Block, Variant
from regseg_jax.ops.conv import grouped_conv
from regseg_jax.ops.pooled_conv import pooled_conv
from regseg_jax.ops.space_to_depth import (
    choose_width,
    depth_to_space,
    get_block_size,
    space_to_depth,
    use_space_to_depth,
)

# (height, width), channels, features, kernel size, stride, dilation rate, groups; in 3 blocks
CONVS = {
    "1x1": ((4, 6), 4, 6, 1, 1, 1, 1),
    "1x1, stride 2": ((4, 12), 4, 6, 1, 2, 1, 1),
    "image": ((6, 24), 3, 4, 3, 2, 1, 1),
    "grouped": ((5, 6), 8, 4, 3, 1, 1, 2),
    "stride 2": ((4, 12), 8, 8, 3, 2, 1, 4),
    "stride 2 of an odd height": ((5, 12), 8, 8, 3, 2, 1, 2),
    "stride 2 leaves one column": ((4, 6), 8, 8, 3, 2, 1, 2),
    "rate 2": ((7, 12), 4, 4, 3, 1, 2, 1),
    "rate 3, stride 2": ((7, 12), 4, 4, 3, 2, 3, 1),
    "rate beyond the map": ((4, 6), 4, 4, 3, 1, 7, 1),
}


def _check_same(function, *arguments, width=3):
    """Value and gradients are those of the function outside of the context, in float64."""
    with jax.enable_x64(True):
        arguments = [jnp.asarray(x, jnp.float64) for x in arguments]

        def differentiate(*arguments):
            y, vjp = jax.vjp(function, *arguments)
            return y, vjp(jnp.cos(jnp.arange(y.size, dtype=jnp.float64)).reshape(y.shape))

        compute = jax.jit(differentiate)
        expected = compute(*arguments)
        before = compute.lower(*arguments).as_text()
        with use_space_to_depth(width):
            assert compute.lower(*arguments).as_text() != before
            actual = compute(*arguments)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CONVS)
def test_convolutions_are_the_same(name):
    (height, width), channels, features, size, stride, rate, groups = CONVS[name]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, height, width, channels))
    kernel = rng.standard_normal((size, size, channels // groups, features))

    def convolve(x, kernel):
        return grouped_conv(x, kernel, stride=stride, dilation_rate=rate, groups=groups)

    _check_same(convolve, x, kernel)


def test_pooled_convolutions_are_the_same():
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, 4, 12, 5)), rng.standard_normal((1, 1, 5, 7))
    _check_same(pooled_conv, x, kernel)


def test_a_models_training_is_the_same():
    stages = (
        ("stage4", (Block(16, stride=2),)),
        ("stage8", (Block(16, stride=2),)),
        ("stage16", (Block(16, stride=2),)),
    )
    variant = Variant("tiny_decoder12", Backbone(stages), "decoder12")
    model = RegSeg(variant, num_classes=3, dtype=jnp.float64, upsample=False)
    images = np.random.default_rng(0).standard_normal((2, 48, 64, 3))
    with jax.enable_x64(True):
        variables = model.init(jax.random.key(0), jnp.zeros((1, 48, 64, 3)), train=False)
    params, tree = jax.tree.flatten(variables["params"])

    def train(images, *params):
        variables_now = {**variables, "params": jax.tree.unflatten(tree, params)}
        logits, new = model.apply(variables_now, images, train=True, mutable=["batch_stats"])
        flat = [leaf.ravel() for leaf in jax.tree.leaves((logits, new))]
        return jnp.concatenate(flat)

    _check_same(train, images, *params, width=8)


def test_columns_become_channels_and_return():
    x = jnp.arange(2 * 3 * 8 * 5.0).reshape(2, 3, 8, 5)
    assert get_block_size(x) == 1
    assert space_to_depth(x) is x
    with use_space_to_depth(2):
        blocks = space_to_depth(x)
        image = space_to_depth(x[..., :3])
    assert blocks.shape == (2, 3, 2, 20)
    np.testing.assert_array_equal(blocks[0, 0, 1, 5:10], x[0, 0, 5])
    np.testing.assert_array_equal(depth_to_space(blocks, 5), x)
    np.testing.assert_array_equal(depth_to_space(image, 3), x[..., :3])


@pytest.mark.parametrize(("width", "expected"), [(768, 96), (240, 30), (100, None)])
def test_widths_that_divide_are_cut_into_blocks_on_tpus_alone(width, expected):
    assert choose_width(width, "tpu") == expected
    assert choose_width(width, "cuda") is None
