import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from regseg_jax.models.blocks import DBlock, DilatedConv


def _fill(shapes):
    """Random f64 values for a tree of shapes, variances positive."""
    rng = np.random.default_rng(0)

    def values(path, leaf):
        if path[-1].key == "var":
            return rng.uniform(0.5, 2, leaf.shape)
        return rng.normal(0, 0.3, leaf.shape)

    return jax.tree.map_with_path(values, shapes)


def _variables(layer, x, **options):
    with jax.enable_x64(True):
        shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.asarray(x), **options))
    return _fill(shapes)


def _nchw(x):
    return torch.tensor(x.transpose(0, 3, 1, 2))


def _conv(x, params, **options):
    """PyTorch's convolution with a Flax layer's parameters."""
    kernel = torch.tensor(params["kernel"].transpose(3, 2, 0, 1))
    bias = torch.tensor(params["bias"]) if "bias" in params else None
    return F.conv2d(x, kernel, bias, **options)


def _dilated(x, params, rates, group_width, stride):
    layers = [params[f"convs_{i}"] for i in range(len(rates))] if len(rates) > 1 else [params]
    return torch.cat(
        [
            _conv(
                *(part, layer),
                **{"stride": stride, "padding": rate, "dilation": rate},
                groups=part.shape[1] // group_width,
            )
            for part, layer, rate in zip(x.chunk(len(rates), 1), layers, rates, strict=True)
        ],
        dim=1,
    )


def _d_block(x, variables, block):
    """The D block of the paper's figure 2, written with PyTorch's functions."""
    params, stats = variables["params"], variables["batch_stats"]

    def batch_norm(y, params, stats):
        values = (stats["mean"], stats["var"], params["scale"], params["bias"])
        return F.batch_norm(y, *map(torch.tensor, values), eps=1e-5)

    y = torch.relu(batch_norm(_conv(x, params["conv1"]), params["bn1"], stats["bn1"]))
    y = _dilated(y, params["conv2"], block.dilation_rates, block.group_width, block.stride)
    y = torch.relu(batch_norm(y, params["bn2"], stats["bn2"]))
    scale = _conv(y.mean((2, 3), keepdim=True), params["se"]["conv1"])
    y = y * torch.sigmoid(_conv(torch.relu(scale), params["se"]["conv2"]))
    y = batch_norm(_conv(y, params["conv3"]), params["bn3"], stats["bn3"])
    if "shortcut" in params:
        shortcut, stride = params["shortcut"], block.stride
        if block.pool_in_shortcut and stride == 2:
            x, stride = F.avg_pool2d(x, 2, 2, ceil_mode=True), 1
        x = _conv(x, shortcut["conv"], stride=stride)
        x = batch_norm(x, shortcut["bn"], stats["shortcut"]["bn"])
    return torch.relu(x + y)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("rates", [(1,), (3,), (1, 4), (1, 2, 3, 5)])
def test_dilated_conv_equals_torch_on_the_parts(rates, stride):
    layer = DilatedConv(32, rates, group_width=4, stride=stride, dtype=jnp.float64)
    x = np.random.default_rng(1).standard_normal((2, 7, 6, 32))
    variables = _variables(layer, x)
    with jax.enable_x64(True):
        y = jax.jit(layer.apply)(variables, x)
    expected = _dilated(_nchw(x), variables["params"], rates, 4, stride)
    np.testing.assert_allclose(y, expected.numpy().transpose(0, 2, 3, 1), rtol=1e-9, atol=1e-9)


def test_one_rate_is_one_convolution_without_a_scope_of_its_own():
    x = np.zeros((1, 4, 4, 16))
    assert set(_variables(DilatedConv(16, (2,), 4), x)["params"]) == {"kernel"}
    assert set(_variables(DilatedConv(16, (2, 3), 4), x)["params"]) == {"convs_0", "convs_1"}


@pytest.mark.parametrize(("channels", "rates"), [(24, (1, 2)), (20, (1,))])
def test_channels_that_do_not_split_raise(channels, rates):
    layer = DilatedConv(channels, rates, group_width=8)
    message = f"{channels} channels do not split into {len(rates)} branches of groups of 8"
    with pytest.raises(ValueError, match=message):
        layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, channels)))


BLOCKS = {
    "identity": (16, DBlock(16, (1, 2), 4)),
    "wider": (8, DBlock(16, (1,), 4)),
    "stride": (16, DBlock(16, (1,), 4, stride=2)),
    "stride_wider": (8, DBlock(16, (1, 3), 4, stride=2)),
    "y_block": (8, DBlock(16, (1,), 4, stride=2, pool_in_shortcut=False)),
}


@pytest.mark.parametrize(("channels", "block"), BLOCKS.values(), ids=BLOCKS)
def test_d_block_equals_torch(channels, block):
    block = block.clone(dtype=jnp.float64)
    x = np.random.default_rng(1).standard_normal((2, 7, 6, channels))  # odd and even
    variables = _variables(block, x, train=False)
    has_shortcut = block.stride == 2 or channels != block.features
    assert ("shortcut" in variables["params"]) == has_shortcut
    with jax.enable_x64(True):
        y = jax.jit(lambda v, x: block.apply(v, x, train=False))(variables, x)
    expected = _d_block(_nchw(x), variables, block)
    np.testing.assert_allclose(y, expected.numpy().transpose(0, 2, 3, 1), rtol=1e-9, atol=1e-9)


def test_squeeze_excite_is_as_wide_as_the_blocks_input():
    variables = _variables(DBlock(32, (1,), 4), np.zeros((1, 4, 4, 8)), train=False)
    assert variables["params"]["se"]["conv1"]["kernel"].shape == (1, 1, 32, 2)


def test_the_3x3_can_be_put_in_from_outside():
    class RatesAsParameters(nn.Module):
        features: int
        dilation_rates: tuple[int, ...]
        group_width: int
        stride: int
        dtype: type

        @nn.compact
        def __call__(self, x):
            rates = self.param("rates", lambda _: jnp.asarray(self.dilation_rates, jnp.float32))
            return x * rates[0]

    block = DBlock(16, (2, 7), 4, dilated_conv=RatesAsParameters)
    variables = _variables(block, np.zeros((1, 4, 4, 16)), train=False)
    assert set(variables["params"]["conv2"]) == {"rates"}
    assert variables["params"]["conv2"]["rates"].shape == (2,)
