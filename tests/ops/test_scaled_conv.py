import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from regseg_jax.models.layers import Conv
from regseg_jax.ops.scaled_conv import scaled_conv
from regseg_jax.ops.space_to_depth import use_space_to_depth


def _definition(x, kernel, scale):
    return jnp.einsum("bhwc,co->bhwo", x * scale, kernel[0, 0])


@pytest.mark.parametrize("platform", ["cuda", "default"])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("blocks", [None, 4])
def test_every_form_equals_the_definition_with_gradients(platform, batch_size, blocks, monkeypatch):
    def choose(*arrays, default, **branches):
        return branches.get(platform, default)(*arrays)

    monkeypatch.setattr(lax, "platform_dependent", choose)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch_size, 5, 8, 4))
    kernel, scale = rng.standard_normal((1, 1, 4, 6)), rng.random((batch_size, 1, 1, 4))

    def compute(function):
        y, vjp = jax.vjp(function, x, kernel, scale)
        return y, *vjp(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    with jax.enable_x64(True), use_space_to_depth(blocks):
        actual, expected = (jax.jit(lambda f=f: compute(f))() for f in (scaled_conv, _definition))
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 3}, r"kernel has shape \(3, 3, 4, 6\); expected \[1, 1, 4"),
        ({"group_width": 2}, r"kernel has shape \(1, 1, 2, 6\)"),
        ({"stride": 2}, "needs stride 1, not 2"),
        ({"use_pool": True}, "no pool"),
    ],
)
def test_other_convolutions_take_no_scale(options, message):
    x, scale = jnp.ones((2, 4, 4, 4)), jnp.ones((2, 1, 1, 4))
    with pytest.raises(ValueError, match=message):
        Conv(6, **options).init(jax.random.key(0), x, scale)
