import importlib.util

import jax
import numpy as np
import pytest
from jax import lax
from jax import numpy as jnp

from regseg_jax.benchmark.targets import create_target
from regseg_jax.ops.conv import grouped_conv
from regseg_jax.ops.conv_forms import FORMS, Geometry
from regseg_jax.ops.lowerings import (
    ConvGeometry,
    LoweringTable,
    PassLowerings,
    applicable_lowerings,
    use_lowerings,
)

# (height, width), channels, features, kernel size, stride, dilation rate, groups
CASES = {
    "1x1": ((9, 7), 6, 5, 1, 1, 1, 1),
    "1x1, stride 2": ((9, 6), 6, 5, 1, 2, 1, 1),
    "dense": ((9, 8), 6, 4, 3, 1, 3, 1),
    "dense, stride 2": ((9, 8), 3, 4, 3, 2, 1, 1),
    "rate 1": ((7, 10), 16, 24, 3, 1, 1, 8),
    "more channels than a chunk": ((5, 6), 168, 168, 3, 1, 2, 7),
    "rate 4": ((9, 8), 16, 16, 3, 1, 4, 8),
    "rate 14": ((16, 15), 8, 8, 3, 1, 14, 2),
    "rate as high as the map": ((12, 9), 8, 8, 3, 1, 12, 2),
    "stride 2, even": ((8, 8), 16, 24, 3, 2, 1, 8),
    "stride 2, odd": ((9, 7), 16, 16, 3, 2, 1, 8),
    "stride 2, rate 2": ((9, 8), 8, 8, 3, 2, 2, 2),
    "stride 2, rate 7": ((8, 11), 8, 8, 3, 2, 7, 2),
    "large map": ((50, 45), 4, 4, 3, 1, 2, 2),
    "one pixel": ((1, 1), 4, 4, 3, 2, 1, 2),
    "1x1, one pixel": ((1, 1), 4, 6, 1, 1, 1, 1),
}


def _geometry(case):
    sides, channels, features, size, *rest = case
    return ConvGeometry(size, *rest, channels, features, *sides)


def _inputs(case, dtype=jnp.float32):
    (height, width), channels, features, size, *_, groups = case
    rng = np.random.default_rng(0)  # not JAX's, whose generator would be compiled for each shape
    x = rng.standard_normal((2, height, width, channels))
    kernel = rng.standard_normal((size, size, channels // groups, features))
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)


def _function(case, lowering):
    *_, stride, rate, groups = case

    def f(x, kernel):
        return grouped_conv(
            x, kernel, stride=stride, dilation_rate=rate, groups=groups, lowering=lowering
        )

    return f


def _reference(case, x, kernel, dy=None):
    """The convolution tap by tap in NumPy, and both gradients for a given dy."""
    *_, size, stride, rate, groups = case
    batch, height, width, channels = x.shape
    pad = rate * (size - 1) // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    x = x.reshape(*x.shape[:3], groups, -1)
    kernel = kernel.reshape(*kernel.shape[:3], groups, -1)
    y_shape = (batch, -(-height // stride), -(-width // stride), groups, kernel.shape[-1])
    y, dx, dkernel = np.zeros(y_shape), np.zeros(x.shape), np.zeros(kernel.shape)
    dy = np.zeros(y_shape) if dy is None else dy.reshape(y_shape)
    for i, j in np.ndindex(size, size):
        rows = slice(i * rate, i * rate + stride * y_shape[1], stride)
        columns = slice(j * rate, j * rate + stride * y_shape[2], stride)
        rows, columns = np.arange(x.shape[1])[rows], np.arange(x.shape[2])[columns]
        tap = np.ix_(range(batch), rows, columns)
        y += np.einsum("bhwgc,cgo->bhwgo", x[tap], kernel[i, j])
        dx[tap] += np.einsum("bhwgo,cgo->bhwgc", dy, kernel[i, j])
        dkernel[i, j] = np.einsum("bhwgc,bhwgo->cgo", x[tap], dy)
    dx = dx[:, pad : pad + height, pad : pad + width].reshape(batch, height, width, channels)
    return y.reshape(*y_shape[:3], -1), dx, dkernel.reshape(size, size, channels // groups, -1)


@pytest.mark.parametrize(
    ("name", "lowering"),
    [
        (name, lowering)
        for name, case in CASES.items()
        for lowering in (*applicable_lowerings(_geometry(case)), None)
        # The library's own grouped gradients are slow on CPUs: one case of them is enough.
        if not (lowering == "conv" and case[-1] > 1)
    ]
    + [("rate 4", "conv")],
)
def test_value_and_both_gradients_equal_the_definition(name, lowering):
    case = CASES[name]
    with jax.enable_x64(True):
        x, kernel = _inputs(case, jnp.float64)

        y, vjp = jax.vjp(jax.jit(_function(case, lowering)), x, kernel)
        dy = jnp.cos(jnp.arange(y.size, dtype=jnp.float64)).reshape(y.shape)
        actual = (y, *vjp(dy))
        expected = _reference(case, np.array(x), np.array(kernel), np.array(dy))
        for a, e in zip(actual, expected, strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["1x1", "1x1, one pixel", "dense", "rate 4"])
def test_half_precision_keeps_its_dtype_and_stays_close(name, dtype):
    case = CASES[name]
    x, kernel = _inputs(case, dtype)
    for lowering in applicable_lowerings(_geometry(case)):
        y, vjp = jax.vjp(jax.jit(_function(case, lowering)), x, kernel)
        dx, dkernel = vjp(jnp.ones_like(y))
        assert y.dtype == dx.dtype == dkernel.dtype == dtype
        expected, *_ = _reference(case, np.array(x, np.float64), np.array(kernel, np.float64))
        np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=0.05, atol=0.1)


def test_vmap_equals_a_loop():
    case = CASES["rate 4"]
    x, kernel = _inputs(case)
    f = _function(case, None)
    xs, kernels = jnp.stack([x, 2 * x]), jnp.stack([kernel, kernel + 1])
    gradients = jax.grad(lambda x, k: (f(x, k) ** 2).sum(), (0, 1))
    mapped = jax.jit(jax.vmap(gradients))(xs, kernels)
    looped = jax.jit(gradients)(xs[1], kernels[1])
    for m, e in zip(mapped, looped, strict=True):
        np.testing.assert_allclose(m[1], e, rtol=1e-4, atol=1e-3)


def _export(function, case, platform):
    exported = jax.export.export(jax.jit(function), platforms=[platform])
    return exported(*_inputs(case)).mlir_module()


def _gradient(case, lowering=None, *, by="kernel"):
    """The gradient by one input, for a gradient of the output that depends on nothing."""
    f, index = _function(case, lowering), ["x", "kernel"].index(by)

    def gradient(*inputs):
        y, vjp = jax.vjp(f, *inputs)
        return vjp(jnp.ones_like(y))[index]

    return gradient


@pytest.mark.parametrize(
    ("platform", "operations"),
    [
        ("cpu", ["stablehlo.dot_general"]),
        ("cuda", ["stablehlo.convolution", "feature_group_count = 8"]),
        ("tpu", ["stablehlo.convolution", "feature_group_count = 1"]),
    ],
)
def test_the_compiled_platform_chooses_the_lowering(platform, operations):
    case = CASES["rate 4"]
    text = _export(_function(case, None), case, platform)
    assert [text.count(operation) for operation in operations] == [1] * len(operations)
    assert text.count("stablehlo.convolution") == operations.count("stablehlo.convolution")


def test_gpus_compute_the_gradient_of_a_dilated_kernel_without_dilation():
    # XLA takes a convolution with a stride for one of a map with another, not for a gradient.
    case = CASES["rate 4"]
    strides = "stride = [4, 4]"
    assert strides in _export(_gradient(case, "conv"), case, "cuda")
    assert strides not in _export(_gradient(case), case, "cuda")


def test_gpus_compute_the_gradient_by_the_input_of_a_stride_without_zeros():
    # XLA takes a grouped convolution with a dilated input for no gradient, and stores the zeros.
    case = CASES["stride 2, even"]
    zeros = "lhs_dilate = [2, 2]"
    assert zeros in _export(_gradient(case, "conv", by="x"), case, "cuda")
    assert zeros not in _export(_gradient(case, by="x"), case, "cuda")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None, reason="needs the extra aot-gpu"
)
@pytest.mark.usefixtures("without_compilation_cache")
@pytest.mark.parametrize(("lowering", "recognised"), [(None, True), ("conv", False)])
def test_the_compiler_of_gpus_recognises_the_gradient_of_a_dilated_kernel(lowering, recognised):
    """Where it recognises "conv" too, `space_to_batch` need no longer be the default."""
    case = ((48, 48), 128, 128, 3, 1, 14, 8)
    sharding = jax.sharding.SingleDeviceSharding(create_target("h100").devices[0])
    inputs = jax.eval_shape(lambda: _inputs(case, jnp.bfloat16))
    inputs = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in inputs]
    traced = jax.jit(_gradient(case, lowering)).trace(*inputs)
    text = traced.lower(lowering_platforms=("cuda",)).compile().as_text()
    assert ("__cudnn$convBackwardFilter" in text) == recognised


def test_gpus_compute_single_pixels_without_the_library():
    case = CASES["1x1, one pixel"]
    text = _export(_function(case, None), case, "cuda") + _export(_gradient(case), case, "cuda")
    assert "stablehlo.reduce" in text
    assert "stablehlo.convolution" not in text
    assert "stablehlo.dot" not in text


def test_a_table_overrides_the_platform_and_jit_traces_again():
    case = CASES["rate 4"]
    choice = PassLowerings("merged_64", "conv", "rows")
    table = LoweringTable("here", ((_geometry(case), choice),))
    function = jax.jit(_function(case, None))
    x, kernel = _inputs(case)
    before = function.lower(x, kernel).as_text()
    with use_lowerings(table):
        text = function.lower(x, kernel).as_text()
        gradients = jax.jit(lambda x, kernel: jax.vjp(function, x, kernel)[1](x)).lower(x, kernel)
        other = jax.jit(_function(CASES["rate 1"], None)).lower(*_inputs(CASES["rate 1"]))
    assert "stablehlo.convolution" not in before
    assert "feature_group_count = 1" in text  # 16 channels make one group of at most 64
    assert gradients.as_text().count("feature_group_count = 8") == 1  # of the input alone
    assert "stablehlo.convolution" not in other.as_text()
    assert function.lower(x, kernel).as_text() == before


def test_only_taps_that_reach_the_map_are_multiplied():
    # 3 x 20 at rate 10: the taps above and below see padding only, which leaves O of 3O columns.
    case = ((3, 20), 8, 8, 3, 1, 10, 2)
    geometry = Geometry(stride=1, rate=10, groups=2, pad_height=10)
    jaxpr = jax.make_jaxpr(lambda x, k: FORMS["rows"](x, k, geometry))(*_inputs(case))
    products = [eqn for eqn in jaxpr.jaxpr.eqns if eqn.primitive is lax.dot_general_p]
    assert len(products) == 1
    assert products[0].outvars[0].aval.size == 2 * 3 * 20 * 8


@pytest.mark.parametrize(
    ("name", "height", "stride", "rate"),
    [("space_to_batch", 7, 1, 2), ("space_to_batch", 7, 1, 5), ("space_to_depth", 8, 2, 1)],
)
def test_forms_take_rows_that_were_fetched(name, height, stride, rate):
    x, kernel = _inputs(((height, 6), 4, 4, 3, stride, rate, 2))
    expected = FORMS["conv"](x, kernel, Geometry(stride, rate, 2, pad_height=rate))
    with_rows = jnp.pad(x, ((0, 0), (rate, rate - stride + 1), (0, 0), (0, 0)))
    actual = FORMS[name](with_rows, kernel, Geometry(stride, rate, 2, pad_height=0))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


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
