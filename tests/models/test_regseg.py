import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regseg_jax.models.blocks import DilatedConv
from regseg_jax.models.regseg import RegSeg, create_model

# With 19 classes (paper, tables 4 to 6, and the author's code).
PARAMETERS = {
    "exp48_decoder26": 3_334_951,
    "exp53_decoder29": 6_131_579,
    "exp43_decoder14": 3_368_023,
    "regnety600mf_decoder14": 5_688_995,
    "exp50_decoder4": 3_392_407,
    "exp43_lraspp": 3_247_082,
    "exp43_BisenetDecoder": 3_926_007,
    "exp43_SFNetDecoder": 3_405_079,
    "exp43_decoder10": 3_295_039,
    "exp43_decoder12": 3_236_951,
}


def _eval_shape(model, size=(32, 32), **options):
    """Shapes of the logits and the variables; nothing is computed."""
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    init = functools.partial(model.init_with_output, train=False, **options)
    return jax.eval_shape(init, jax.random.key(0), images)


@pytest.fixture(scope="module")
def variables(small_model):
    """Kernels such that the features keep their size; batch norms near the identity."""
    rng = np.random.default_rng(1)

    def values(path, leaf):
        noise = rng.standard_normal(leaf.shape, np.float32)
        if leaf.ndim == 4:
            return noise * np.float32(2 / np.prod(leaf.shape[:-1])) ** 0.5
        return 0.1 * noise + np.float32(path[-1].key in ("scale", "var"))

    _, shapes = _eval_shape(small_model)
    return jax.tree.map_with_path(values, shapes)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).standard_normal((2, 45, 70, 3)).astype(np.float32)


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_counts(name, count):
    _, variables = _eval_shape(create_model(name, num_classes=19))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count


@pytest.mark.parametrize(
    "size", [(1, 1), (2, 3), (17, 5), (32, 64), (33, 47), (36, 50)], ids="{0[0]}x{0[1]}".format
)
def test_logits_have_the_images_size(small_model, size):
    logits, _ = _eval_shape(small_model, size)
    assert logits.shape == (2, *size, 11)
    assert logits.dtype == jnp.float32


def test_half_precision_is_close_and_ends_in_float32(small_variant, variables, images):
    def logits(dtype):
        model = RegSeg(small_variant, 11, dtype=dtype)
        return jax.jit(functools.partial(model.apply, train=False))(variables, images)

    expected = np.asarray(logits(jnp.float32))
    assert expected.shape == (2, 45, 70, 11)
    # Their mantissas have 8 and 11 bits.
    for dtype, tolerance in ((jnp.bfloat16, 0.1), (jnp.float16, 0.0125)):
        actual = logits(dtype)
        assert actual.dtype == jnp.float32
        error = np.abs(actual - expected).max() / expected.std()
        # No error at all would mean that the dtype goes nowhere.
        assert 1e-5 < error < tolerance, dtype


def test_parameters_are_float32_whatever_the_dtype(small_variant):
    for dtype in (jnp.bfloat16, jnp.float16):
        _, variables = _eval_shape(RegSeg(small_variant, 11, dtype=dtype))
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_training_updates_every_batch_statistic(small_model, variables, images):
    train = jax.jit(functools.partial(small_model.apply, train=True, mutable=["batch_stats"]))
    logits, updates = train(variables, images)
    assert logits.shape == (2, 45, 70, 11)
    changed = jax.tree.map(
        lambda new, old: bool((new != old).any()), updates["batch_stats"], variables["batch_stats"]
    )
    assert all(jax.tree.leaves(changed)), changed


def test_evaluation_leaves_the_batch_statistics(small_model, variables):
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    evaluate = functools.partial(small_model.apply, train=False, mutable=["batch_stats"])
    jaxpr = jax.make_jaxpr(evaluate)(variables, images)
    passed_on = set(map(id, jaxpr.jaxpr.outvars)) & set(map(id, jaxpr.jaxpr.invars))
    assert len(passed_on) == len(jax.tree.leaves(variables["batch_stats"]))


def test_the_3x3_convolutions_come_from_outside(small_variant):
    built = []

    def dilated_conv(**options):
        built.append((options["features"], options["dilation_rates"], options["stride"]))
        return DilatedConv(**options)

    _eval_shape(RegSeg(small_variant, 11, dilated_conv))
    blocks = [block for _, blocks in small_variant.backbone.stages for block in blocks]
    assert built == [(b.out_channels, b.dilation_rates, b.stride) for b in blocks]


@pytest.mark.parametrize("alias", ["regseg", "exp48_decoder26"])
def test_aliases_and_names_give_equal_models(alias):
    assert create_model(alias, 19) == create_model("exp48_decoder26", 19)


@pytest.mark.parametrize("num_classes", [0, -1])
def test_a_model_needs_a_class(num_classes):
    with pytest.raises(ValueError, match=f"num_classes is {num_classes}"):
        create_model("regseg", num_classes)


def test_an_unknown_model_lists_the_names():
    with pytest.raises(ValueError, match=r"unknown model 'unet'.*exp48.*decoder26.*regseg_large"):
        create_model("unet", 19)
