import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout

from regseg_jax.models import folding
from regseg_jax.models.folding import choose_format, fold_batch_norm, prepare_inference
from regseg_jax.models.regseg import RegSeg
from regseg_jax.models.variants import DECODERS, Variant


def fill(shapes, dtype):
    """Kernels that keep the signal's size, and batch norms that are not identities."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return rng.normal(0, np.prod(leaf.shape[:3]) ** -0.5, leaf.shape).astype(dtype)
        if name in ("scale", "var"):
            return rng.uniform(0.5, 2, leaf.shape).astype(dtype)
        return rng.normal(0, 0.5, leaf.shape).astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def create(small_variant, decoder, dtype):
    model = RegSeg(Variant("small", small_variant.backbone, decoder), 5, dtype=dtype)
    images = np.random.default_rng(1).normal(size=(1, 40, 56, 3)).astype(dtype)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    return model, fill(shapes, dtype), images


@pytest.mark.parametrize("decoder", [d for d in DECODERS if d != "decoder29"])
def test_computes_the_same_in_float64(small_variant, decoder):
    with jax.enable_x64(True):
        model, variables, images = create(small_variant, decoder, np.float64)
        folded = fold_batch_norm(variables, jnp.float64)
        assert set(folded) == {"params"}
        infer = jax.jit(lambda variables: model.apply(variables, images, train=False))
        expected, actual = infer(variables), infer(folded)
        assert actual.dtype == np.float64
        assert abs(actual - expected).max() <= 1e-10 * expected.std()


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-4), (jnp.bfloat16, 0.1)])
def test_computes_the_same_to_rounding(small_variant, dtype, tolerance):
    model, variables, images = create(small_variant, "decoder26", np.float32)
    model = model.clone(dtype=dtype)
    folded = fold_batch_norm(variables, dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(folded)} == {jnp.dtype(dtype)}
    infer = jax.jit(lambda variables: model.apply(variables, images, train=False))
    expected, actual = infer(variables), infer(folded)
    assert jnp.sqrt(jnp.square(actual - expected).mean()) <= tolerance * expected.std()


def test_kernels_on_gpus_are_kept_as_convolutions_read_them(monkeypatch):
    gpu = types.SimpleNamespace(device_set=[types.SimpleNamespace(platform="gpu")])
    monkeypatch.setattr(folding, "Format", lambda *parts: parts)
    kernel, bias = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, 3, 8, 4), (4,)))
    assert choose_format(kernel, gpu) == (Layout((3, 0, 1, 2)), gpu)
    assert choose_format(bias, gpu) == gpu


def test_the_memory_order_of_kernels_changes_no_value(small_variant, monkeypatch):
    model, variables, images = create(small_variant, "decoder26", np.float32)
    infer = jax.jit(lambda variables: model.apply(variables, images, train=False))
    expected = infer(prepare_inference(variables, jnp.float32))

    def choose(x, sharding):
        return Format(Layout((3, 0, 1, 2)), sharding) if x.ndim == 4 else sharding

    monkeypatch.setattr(folding, "choose_format", choose)
    ordered = prepare_inference(variables, jnp.float32)
    assert ordered["params"]["stem"]["conv"]["kernel"].format.layout.major_to_minor == (3, 0, 1, 2)
    np.testing.assert_allclose(infer(ordered), expected, rtol=0, atol=1e-5 * expected.std())


def test_folded_weights_are_not_trained(small_variant):
    model, variables, images = create(small_variant, "decoder26", np.float32)
    folded = fold_batch_norm(variables, jnp.float32)
    with pytest.raises(ValueError, match="folded batch norms cannot be trained"):
        jax.eval_shape(lambda: model.apply(folded, images, train=True, mutable=["batch_stats"]))
