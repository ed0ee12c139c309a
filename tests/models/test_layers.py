import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from regseg_jax.models.layers import (
    BatchNorm,
    Conv,
    ConvBN,
    SqueezeExcite,
    global_mean,
    relu,
    store_rounded,
)


def _random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def _nchw(x):
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2))


def _nhwc(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


def _oihw(kernel):
    return torch.tensor(np.asarray(kernel).transpose(3, 2, 0, 1))


# (height, width), channels, features, kernel size, stride, dilation rate, group width
CONVS = [
    ((5, 7), 6, 4, 1, 1, 1, None),
    ((5, 8), 6, 4, 1, 2, 1, None),
    ((5, 8), 3, 4, 3, 2, 1, None),
    ((6, 7), 6, 4, 3, 1, 3, None),
    ((5, 7), 8, 12, 3, 1, 1, 4),
    ((9, 6), 8, 8, 3, 1, 14, 4),
    ((7, 8), 8, 8, 3, 2, 2, 4),
]


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("case", CONVS, ids=str)
def test_conv_equals_torch(case, use_bias):
    size, channels, features, kernel_size, stride, rate, group_width = case
    group_width = group_width or channels
    layer = Conv(features, kernel_size, stride, rate, case[-1], use_bias, dtype=jnp.float64)
    params = {"kernel": _random(kernel_size, kernel_size, group_width, features, seed=1)}
    if use_bias:
        params["bias"] = _random(features, seed=2)
    x = _random(2, *size, channels)
    with jax.enable_x64(True):
        y = jax.jit(layer.apply)({"params": params}, x)

    reference = torch.nn.functional.conv2d(
        _nchw(x),
        _oihw(params["kernel"]),
        torch.tensor(params["bias"]) if use_bias else None,
        stride=stride,
        padding=rate * (kernel_size // 2),
        dilation=rate,
        groups=channels // group_width,
    )
    np.testing.assert_allclose(y, _nhwc(reference), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("case", CONVS, ids=str)
def test_conv_has_torchs_parameters(case):
    size, channels, features, kernel_size, *_, group_width = case
    layer = Conv(*case[2:], use_bias=True)
    params = jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, *size, channels)))
    reference = torch.nn.Conv2d(
        channels, features, kernel_size, groups=channels // (group_width or channels)
    )
    kernel, bias = params["params"]["kernel"], params["params"]["bias"]
    assert _oihw(np.zeros(kernel.shape)).shape == reference.weight.shape
    assert bias.shape == reference.bias.shape
    assert kernel.dtype == bias.dtype == jnp.float32


@pytest.mark.parametrize(
    ("kernel_size", "group_width", "fan_in"), [(1, None, 64), (3, None, 576), (3, 16, 144)]
)
def test_conv_starts_uniform_within_the_root_of_fan_in(kernel_size, group_width, fan_in):
    layer = Conv(4096, kernel_size, group_width=group_width, use_bias=True)
    init = jax.jit(layer.init)(jax.random.key(0), jnp.zeros((1, 2, 2, 64)))
    bound = fan_in**-0.5
    for values in init["params"].values():
        # 4096 and more draws: their quantiles are within some 2% of the bound, not by luck.
        quantiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
        np.testing.assert_allclose(quantiles / bound, [-1, -0.5, 0, 0.5, 1], atol=0.06)
        assert np.abs(values).max() <= bound


def test_the_initial_deviation_is_torchs():
    init = jax.jit(Conv(256, 3).init)(jax.random.key(0), jnp.zeros((1, 2, 2, 32)))
    reference = torch.nn.Conv2d(32, 256, 3).weight
    assert np.std(init["params"]["kernel"]) == pytest.approx(reference.std().item(), rel=0.02)


def test_conv_computes_in_its_dtype():
    layer = Conv(4, 3, use_bias=True, dtype=jnp.bfloat16)
    x = jnp.zeros((1, 4, 4, 2), jnp.float32)
    y, variables = jax.eval_shape(lambda: layer.init_with_output(jax.random.key(0), x))
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def _batch_norm_pair(channels):
    """Variables with random values and the PyTorch layer that has the same ones."""
    rng = np.random.default_rng(3)
    scale, bias, mean = rng.standard_normal((3, channels))
    var = rng.uniform(0.5, 2, channels)
    reference = torch.nn.BatchNorm2d(channels).double()
    values = {"weight": scale, "bias": bias, "running_mean": mean, "running_var": var}
    reference.load_state_dict(
        {name: torch.tensor(value) for name, value in values.items()}, strict=False
    )
    params, stats = {"scale": scale, "bias": bias}, {"mean": mean, "var": var}
    return {"params": params, "batch_stats": stats}, reference


def test_batch_norm_in_evaluation_equals_torch():
    variables, reference = _batch_norm_pair(5)
    x = _random(2, 3, 4, 5)
    with jax.enable_x64(True):
        y = BatchNorm(jnp.float64).apply(variables, x, train=False)
    np.testing.assert_allclose(y, _nhwc(reference.eval()(_nchw(x))), rtol=1e-12, atol=1e-12)


def test_batch_norm_in_training_equals_torch_for_two_steps_with_gradients():
    variables, reference = _batch_norm_pair(5)
    params, stats = variables["params"], variables["batch_stats"]

    @jax.jit
    def step(params, stats, x, cotangent):
        def forward(params, x):
            return BatchNorm(jnp.float64).apply(
                {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
            )

        y, vjp, updates = jax.vjp(forward, params, x, has_aux=True)
        return y, *vjp(cotangent), updates["batch_stats"]

    # Few values a channel, so that the unbiased variance is a third above the biased one.
    for seed in (0, 1):
        x, cotangent = 2 + 3 * _random(2, 1, 2, 5, seed=seed), _random(2, 1, 2, 5, seed=9)
        with jax.enable_x64(True):
            y, d_params, d_x, stats = step(params, stats, x, cotangent)

        reference.zero_grad()
        torch_x = _nchw(x).requires_grad_()
        torch_y = reference(torch_x)
        torch_y.backward(_nchw(cotangent))
        expected = {
            "y": (y, _nhwc(torch_y)),
            "d_x": (d_x, _nhwc(torch_x.grad)),
            "d_scale": (d_params["scale"], reference.weight.grad),
            "d_bias": (d_params["bias"], reference.bias.grad),
            "mean": (stats["mean"], reference.running_mean),
            "var": (stats["var"], reference.running_var),
        }
        for name, (actual, wanted) in expected.items():
            np.testing.assert_allclose(actual, wanted, rtol=1e-9, atol=1e-9, err_msg=name)


def test_batch_norm_starts_as_the_identity_even_in_training_mode():
    x = 5 + jnp.asarray(_random(2, 3, 3, 4), jnp.float32)
    init = jax.jit(lambda x: BatchNorm().init(jax.random.key(0), x, train=True))
    variables = init(x)
    assert (variables["params"]["scale"] == 1).all()
    assert (variables["params"]["bias"] == 0).all()
    assert (variables["batch_stats"]["mean"] == 0).all()
    assert (variables["batch_stats"]["var"] == 1).all()


def test_batch_norm_of_one_value_a_channel_is_finite():
    variables, _ = _batch_norm_pair(3)
    x = _random(1, 1, 1, 3)
    with jax.enable_x64(True):
        y, updates = BatchNorm(jnp.float64).apply(variables, x, train=True, mutable="batch_stats")
    np.testing.assert_allclose(y[0, 0, 0], variables["params"]["bias"], rtol=1e-9)
    assert all(np.isfinite(value).all() for value in jax.tree.leaves(updates))


def test_batch_norm_keeps_float32_statistics_of_half_precision():
    # 300 squared is beyond float16.
    x = jnp.asarray(300 + 20 * _random(2, 8, 8, 4), jnp.float16)
    layer = BatchNorm(jnp.float16)

    @jax.jit
    def first_step(x):
        variables = layer.init(jax.random.key(0), x, train=True)
        return layer.apply(variables, x, train=True, mutable=["batch_stats"])

    y, updates = first_step(x)
    assert y.dtype == jnp.float16
    assert {a.dtype for a in jax.tree.leaves(updates)} == {jnp.dtype(jnp.float32)}
    wide = np.asarray(x, np.float32)
    np.testing.assert_allclose(
        updates["batch_stats"]["mean"], 0.1 * wide.mean((0, 1, 2)), rtol=1e-4
    )
    expected = (wide - wide.mean((0, 1, 2))) / wide.std((0, 1, 2))
    np.testing.assert_allclose(np.asarray(y, np.float32), expected, atol=5e-3)


def test_batch_norm_is_synchronised_over_the_mesh():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = jnp.asarray(_random(8, 2, 2, 3), jnp.float32) + jnp.arange(8.0).reshape(8, 1, 1, 1)

    @jax.jit
    def first_step(x):
        variables = BatchNorm().init(jax.random.key(0), x, train=True)
        return BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])

    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    for actual, expected in zip(
        *map(jax.tree.leaves, (first_step(sharded), first_step(x))), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("check_vma", [False, True])
def test_batch_norm_over_a_mapped_axis_equals_the_whole_batchs_with_gradients(check_vma):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    variables, _ = _batch_norm_pair(3)
    x = 2 + 3 * _random(8, 2, 2, 3) + np.arange(8).reshape(8, 1, 1, 1)
    targets = _random(8, 2, 2, 3, seed=1)

    def loss_fn(layer, params, x, targets):
        y, updates = layer.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        return (y * targets).sum(), updates["batch_stats"]

    def compute(layer, *inputs):
        return jax.value_and_grad(functools.partial(loss_fn, layer), argnums=(0, 1), has_aux=True)(
            *inputs
        )

    def compute_shard(params, x, targets):
        # Gradients of a shard's own loss, summed here.
        params = jax.lax.pcast(params, "data", to="varying") if check_vma else params
        layer = BatchNorm(jnp.float64, axis_name="data")
        (loss, updates), (d_params, d_x) = compute(layer, params, x, targets)
        loss, d_params = jax.lax.psum((loss, d_params), "data")
        return (loss, updates), (d_params, d_x)

    replicated, sharded = PartitionSpec(), PartitionSpec("data")
    sharded_compute = jax.shard_map(
        compute_shard,
        mesh=mesh,
        in_specs=(replicated, sharded, sharded),
        out_specs=(replicated, (replicated, sharded)),
        check_vma=check_vma,
    )
    with jax.enable_x64(True):
        inputs = (variables["params"], x, targets)
        inputs = jax.tree.map(jnp.asarray, inputs)
        actual = jax.jit(sharded_compute)(*inputs)
        expected = compute(BatchNorm(jnp.float64), *inputs)
    for a, e in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("use_relu", [False, True])
def test_conv_bn_ends_in_relu_unless_told_otherwise(use_relu):
    layer = ConvBN(4, 3, 2, use_relu)
    x = jnp.asarray(_random(2, 5, 7, 3), jnp.float32)
    y, variables = jax.jit(lambda x: layer.init_with_output(jax.random.key(0), x, train=False))(x)
    assert y.shape == (2, 3, 4, 4)
    assert set(variables["params"]["conv"]) == {"kernel"}  # no bias before batch norm
    assert (y.min() >= 0) == use_relu


def test_squeeze_excite_equals_torch():
    x = _random(2, 3, 5, 8)
    layer = SqueezeExcite(2, dtype=jnp.float64)
    params = {
        "conv1": {"kernel": _random(1, 1, 8, 2, seed=1), "bias": _random(2, seed=2)},
        "conv2": {"kernel": _random(1, 1, 2, 8, seed=3), "bias": _random(8, seed=4)},
    }
    with jax.enable_x64(True):
        y = jax.jit(lambda params, x: x * layer.apply({"params": params}, x))(params, x)

    torch_x = _nchw(x)
    scale = torch_x.mean((2, 3), keepdim=True)
    for name, activation in (("conv1", torch.relu), ("conv2", torch.sigmoid)):
        scale = activation(
            torch.nn.functional.conv2d(
                scale, _oihw(params[name]["kernel"]), torch.tensor(params[name]["bias"])
            )
        )
    np.testing.assert_allclose(y, _nhwc(torch_x * scale), rtol=1e-12)


def test_a_scaled_input_gives_one_image_what_it_gives_each_of_several():
    layer = Conv(4, dtype=jnp.float64)
    x, scale, kernel = _random(2, 3, 5, 8), _random(2, 1, 1, 8, seed=1), _random(1, 1, 8, 4, seed=2)
    with jax.enable_x64(True):
        convolve = jax.jit(lambda x, *scale: layer.apply({"params": {"kernel": kernel}}, x, *scale))
        expected = convolve(x * scale)
        np.testing.assert_allclose(convolve(x, scale), expected, rtol=1e-12)
        np.testing.assert_allclose(convolve(x[1:], scale[1:]), expected[1:], rtol=1e-12, atol=1e-15)


def test_global_mean_does_not_overflow_in_half_precision():
    x = jnp.full((1, 64, 64, 2), 100, jnp.float16)  # their sum is beyond float16
    mean = global_mean(x)
    assert mean.shape == (1, 1, 1, 2)
    assert mean.dtype == jnp.float16
    assert (mean == 100).all()


def test_relu_and_its_gradient_equal_jaxs():
    x = jnp.array([-2.0, -0.0, 0.0, 1e-30, 3.0, jnp.nan])
    (y, vjp), (expected, expected_vjp) = jax.vjp(relu, x), jax.vjp(jax.nn.relu, x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(*(f(jnp.arange(1.0, 7))[0] for f in (vjp, expected_vjp)))


@pytest.mark.parametrize(
    ("platform", "dtype", "barriers"),
    [("cuda", jnp.bfloat16, 1), ("cuda", jnp.float32, 0), ("cpu", jnp.bfloat16, 0)],
)
def test_gpus_store_half_precision_and_no_gradient_of_it(platform, dtype, barriers):
    def loss(x):
        return jnp.square(store_rounded(x)).sum()

    x = jax.ShapeDtypeStruct((3,), dtype)
    for compute in (loss, jax.value_and_grad(loss)):
        module = jax.export.export(jax.jit(compute), platforms=[platform])(x).mlir_module()
        assert module.count("stablehlo.optimization_barrier") == barriers
    np.testing.assert_array_equal(jax.grad(loss)(jnp.ones(3, dtype)), 2)


@pytest.mark.parametrize(("platform", "barriers"), [("cuda", 1), ("cpu", 0)])
def test_on_gpus_the_gradient_of_relu_reads_the_stored_result(platform, barriers):
    x = jax.ShapeDtypeStruct((3,), jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda x: jnp.square(relu(x)).sum()))
    module = jax.export.export(gradient, platforms=[platform])(x).mlir_module()
    assert module.count("stablehlo.optimization_barrier") == barriers
