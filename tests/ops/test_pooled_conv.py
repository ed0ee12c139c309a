import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regseg_jax.ops import pooled_conv
from regseg_jax.ops.resize import average_pool_2x2


def _definition(x, kernel):
    return jnp.einsum("bhwc,co->bhwo", average_pool_2x2(x), kernel[0, 0])


@pytest.mark.parametrize("platform", ["tpu", "default"])
@pytest.mark.parametrize("size", [(4, 6), (5, 6), (4, 3)])
def test_every_form_equals_the_definition_with_gradients(platform, size, monkeypatch):
    monkeypatch.setattr(
        pooled_conv.lax, "platform_dependent", lambda *xs, **branches: branches[platform](*xs)
    )
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, *size, 3)), rng.standard_normal((1, 1, 3, 5))

    def compute(function):
        y, vjp = jax.vjp(function, x, kernel)
        return y, *vjp(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    with jax.enable_x64(True):
        actual, expected = (
            jax.jit(lambda f=f: compute(f))() for f in (pooled_conv.pooled_conv, _definition)
        )
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("platform", "convolutions"), [("cpu", 0), ("tpu", 1)])
def test_the_compiled_platform_chooses_the_form(platform, convolutions):
    x, kernel = jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 1, 3, 5))
    exported = jax.export.export(jax.jit(pooled_conv.pooled_conv), platforms=[platform])
    text = exported(x, kernel).mlir_module()
    assert text.count("stablehlo.convolution") == convolutions
