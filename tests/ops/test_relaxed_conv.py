import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from regseg_jax.ops.conv import grouped_conv
from regseg_jax.ops.relaxed_conv import relaxed_conv

RATES = (1, 2, 5)


@pytest.fixture(scope="module")
def arrays():
    """Feature maps of 4 groups of 2, kernels and weights of three candidates."""
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (2, 7, 9, 8))
    kernels = jax.random.normal(keys[1], (3, 3, 3, 2, 8))
    return x, kernels, jnp.array([0.5, 0.2, 0.3])


def _expected(x, kernels, weights):
    convolutions = [
        grouped_conv(x, kernel, dilation_rate=rate, groups=4)
        for kernel, rate in zip(kernels, RATES, strict=True)
    ]
    return jnp.tensordot(weights, jnp.stack(convolutions), 1)


def _relaxed(x, kernels, weights):
    return relaxed_conv(x, kernels, weights, RATES, groups=4)


def test_it_is_the_weighted_sum_of_dilated_convolutions(arrays):
    def with_gradients(function):
        def loss(*inputs):
            outputs = function(*inputs)
            return jnp.sum(outputs * jnp.cos(jnp.arange(outputs.size)).reshape(outputs.shape))

        outputs = jax.jit(function)(*arrays)
        return outputs, *jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arrays)

    actual, expected = with_gradients(_relaxed), with_gradients(_expected)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * float(jnp.abs(b).max()))


def test_it_runs_on_shards_with_replicated_kernels(arrays):
    x, kernels, weights = arrays
    sharded = jax.shard_map(
        _relaxed,
        mesh=Mesh(np.array(jax.devices()[:2]), ("data",)),
        in_specs=(P("data"), P(), P()),
        out_specs=P("data"),
    )
    expected = _relaxed(x, kernels, weights)
    np.testing.assert_allclose(jax.jit(sharded)(x, kernels, weights), expected, atol=1e-4)


def test_a_lone_candidate_is_a_dilated_convolution(arrays):
    x, kernels, _ = arrays
    alone = relaxed_conv(x, kernels[:1], jnp.ones(1), RATES[1:2], groups=4)
    expected = grouped_conv(x, kernels[0], dilation_rate=RATES[1], groups=4)
    np.testing.assert_allclose(alone, expected, rtol=0, atol=1e-4)


def test_the_result_has_the_dtype_of_the_feature_maps(arrays):
    x, kernels, weights = arrays
    assert _relaxed(x.astype(jnp.bfloat16), kernels, weights).dtype == jnp.bfloat16


def test_candidates_that_do_not_fit_are_refused(arrays):
    x, kernels, weights = arrays
    with pytest.raises(
        ValueError, match=r"weights \(2,\) and 3 dilation rates are not of the same"
    ):
        relaxed_conv(x, kernels, weights[:2], RATES, groups=4)
