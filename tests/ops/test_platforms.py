import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regseg_jax.ops.platforms import choose_by_platform

multiply = choose_by_platform(cuda=lambda x, y: x * y, default=lambda x, y: jnp.exp2(x) * y)


def test_value_and_gradients_are_those_of_the_platform():
    value, vjp = jax.vjp(jax.jit(multiply), jnp.float32(3), jnp.float32(5))
    np.testing.assert_allclose(value, 40)
    np.testing.assert_allclose(vjp(jnp.float32(1)), (40 * np.log(2), 8), rtol=1e-6)


@pytest.mark.parametrize(("platform", "powers"), [("cuda", 0), ("cpu", 1)])
def test_a_platform_gets_nothing_of_the_other_lowering(platform, powers):
    gradient = jax.jit(jax.grad(multiply))
    module = jax.export.export(gradient, platforms=[platform])(1.0, 1.0).mlir_module()
    assert min(module.count("exponential") + module.count("pow"), 1) == powers
