import jax
import numpy as np
import pytest
from jax import lax
from jax import numpy as jnp

from regseg_jax.ops import conv
from regseg_jax.ops.conv import LOWERINGS, grouped_conv

# (height, width), channels, features, kernel size, stride, dilation rate, groups
CASES = [
    ((9, 7), 6, 5, 1, 1, 1, 1),
    ((9, 6), 6, 5, 1, 2, 1, 1),
    ((8, 9), 6, 4, 3, 1, 1, 1),
    ((9, 8), 3, 4, 3, 2, 1, 1),
    ((9, 8), 6, 4, 3, 1, 3, 1),
    ((7, 10), 16, 24, 3, 1, 1, 8),
    ((9, 8), 16, 16, 3, 1, 4, 8),
    ((16, 15), 8, 8, 3, 1, 14, 2),
    ((12, 9), 8, 8, 3, 1, 12, 2),
    ((3, 20), 8, 8, 3, 1, 10, 2),
    ((8, 8), 16, 24, 3, 2, 1, 8),
    ((9, 7), 16, 16, 3, 2, 1, 8),
    ((9, 8), 8, 8, 3, 2, 2, 2),
    ((8, 11), 8, 8, 3, 2, 7, 2),
    ((1, 1), 4, 4, 3, 2, 1, 2),
]


def _inputs(case, dtype=jnp.float32):
    (height, width), channels, features, size, *_, groups = case
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (2, height, width, channels), dtype)
    return x, jax.random.normal(keys[1], (size, size, channels // groups, features), dtype)


def _function(case, lowering):
    *_, stride, rate, groups = case

    def f(x, kernel):
        return grouped_conv(
            x, kernel, stride=stride, dilation_rate=rate, groups=groups, lowering=lowering
        )

    return f


def _reference(case):
    *_, size, stride, rate, groups = case
    pad = rate if size == 3 else 0

    def f(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            [(pad, pad)] * 2,
            rhs_dilation=(rate, rate),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    return f


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("lowering", [None, *LOWERINGS])
def test_equals_lax_convolution_with_both_gradients(case, lowering):
    with jax.enable_x64(True):
        x, kernel = _inputs(case, jnp.float64)

        @jax.jit
        def outputs(x, kernel):
            results = []
            for f in (_function(case, lowering), _reference(case)):
                y, vjp = jax.vjp(f, x, kernel)
                results.append((y, *vjp(jnp.cos(jnp.arange(y.size)).reshape(y.shape))))
            return results

        actual, expected = outputs(x, kernel)
        for a, e in zip(actual, expected, strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[6], CASES[10]], ids=str)
def test_half_precision_keeps_its_dtype_and_stays_close(case, dtype):
    x, kernel = _inputs(case, dtype)
    for lowering in LOWERINGS:
        y, vjp = jax.vjp(_function(case, lowering), x, kernel)
        dx, dkernel = vjp(jnp.ones_like(y))
        assert y.dtype == dx.dtype == dkernel.dtype == dtype
        expected = _reference(case)(x.astype(jnp.float32), kernel.astype(jnp.float32))
        np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=0.05, atol=0.1)


def test_vmap_equals_a_loop():
    case = CASES[6]
    x, kernel = _inputs(case)
    f = _function(case, None)
    xs, kernels = jnp.stack([x, 2 * x]), jnp.stack([kernel, kernel + 1])
    mapped = jax.vmap(jax.grad(lambda x, k: (f(x, k) ** 2).sum(), (0, 1)))(xs, kernels)
    looped = jax.grad(lambda x, k: (f(x, k) ** 2).sum(), (0, 1))(xs[1], kernels[1])
    for m, e in zip(mapped, looped, strict=True):
        np.testing.assert_allclose(m[1], e, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("platform", "convolutions"), [("cpu", 0), ("cuda", 1)])
def test_the_compiled_platform_chooses_the_lowering(platform, convolutions):
    case = CASES[6]
    exported = jax.export.export(jax.jit(_function(case, None)), platforms=[platform])
    text = exported(*_inputs(case)).mlir_module()
    assert text.count("stablehlo.convolution") == convolutions


def test_only_taps_that_reach_the_map_are_multiplied():
    # 3 x 20 at rate 10: the taps above and below see padding only, the products are [.., 3C] x [3C, O]
    case = ((3, 20), 8, 8, 3, 1, 10, 2)
    geometry = conv._Geometry(stride=1, rate=10, groups=2)
    jaxpr = jax.make_jaxpr(lambda x, k: conv._rows_conv(x, k, geometry))(*_inputs(case))
    products = [eqn for eqn in jaxpr.jaxpr.eqns if eqn.primitive is lax.dot_general_p]
    assert len(products) == 1
    assert products[0].outvars[0].aval.size == 2 * 3 * 20 * 8


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "options", "message"),
    [
        ((1, 8, 8, 4), (5, 5, 4, 4), {}, r"kernel has shape \(5, 5, 4, 4\)"),
        ((1, 8, 8, 4), (3, 3, 4, 4), {"groups": 2}, "do not fit 2 groups"),
        ((1, 8, 8, 4), (3, 3, 2, 3), {"groups": 2}, "do not fit 2 groups"),
        ((8, 8, 4), (3, 3, 4, 4), {}, "do not fit 1 groups"),
        ((1, 8, 8, 4), (3, 3, 4, 4), {"lowering": "fft"}, "lowering is 'fft'"),
    ],
)
def test_bad_input_raises(x_shape, kernel_shape, options, message):
    with pytest.raises(ValueError, match=message):
        grouped_conv(jnp.zeros(x_shape), jnp.zeros(kernel_shape), **options)
