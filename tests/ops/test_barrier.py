import jax
import jax.numpy as jnp
import pytest

from regseg_jax.ops.barrier import gpu_common


@pytest.mark.parametrize("number", [1.0, -0.25, True])
def test_the_number_and_its_dtype_stay(number):
    common = jax.jit(gpu_common)(number)
    assert common.dtype == jnp.asarray(number).dtype
    assert common == number


@pytest.mark.parametrize(("platform", "barriers"), [("cuda", 1), ("cpu", 0), ("tpu", 0)])
def test_gpus_read_it_from_an_array(platform, barriers):
    exported = jax.export.export(jax.jit(gpu_common), platforms=[platform])(jnp.float32(1))
    assert exported.mlir_module().count("stablehlo.optimization_barrier") == barriers
