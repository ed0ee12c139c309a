"""The D block: RegSeg's dilated, grouped residual block (paper, section 3.2 and figure 2)."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from regseg_jax.models.layers import BatchNorm, Conv, SqueezeExcite, relu, store_rounded
from regseg_jax.models.variants import DilationRates


class DilatedConv(nn.Module):
    """3x3 grouped convolution in as many branches as there are dilation rates.

    The channels are split evenly, part i is convolved with rate i, and the parts are
    concatenated. One rate is one ordinary grouped convolution (with its kernel in this scope,
    as in the author's state dicts).
    """

    features: int
    dilation_rates: DilationRates
    group_width: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, features] -> [B, ceil(H / stride), ceil(W / stride), features].

        Raises:
          ValueError: if the branches' channels are not a multiple of the group width.
        """
        num_branches = len(self.dilation_rates)
        if x.shape[-1] % (num_branches * self.group_width):
            raise ValueError(
                f"{x.shape[-1]} channels do not split into {num_branches} branches of groups of "
                f"{self.group_width}; change the channels, the group width or the rates "
                f"{self.dilation_rates}"
            )

        def conv(name: str | None, rate: int) -> Conv:
            return Conv(
                self.features // num_branches,
                kernel_size=3,
                stride=self.stride,
                dilation_rate=rate,
                group_width=self.group_width,
                dtype=self.dtype,
                name=name,
            )

        if num_branches == 1:
            single = conv(None, self.dilation_rates[0])
            nn.share_scope(self, single)
            return single(x)
        parts = jnp.split(x, num_branches, axis=-1)
        branches = zip(self.dilation_rates, parts, strict=True)
        outputs = [conv(f"convs_{i}", rate)(part) for i, (rate, part) in enumerate(branches)]
        return jnp.concatenate(outputs, axis=-1)


class Shortcut(nn.Module):
    """The projection parallel to a D block: [2x2 average pool] -> 1x1 convolution -> batch norm."""

    features: int
    stride: int
    use_pool: bool
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        pools = self.use_pool and self.stride == 2
        stride = 1 if pools else self.stride
        x = Conv(self.features, stride=stride, dtype=self.dtype, use_pool=pools, name="conv")(x)
        return BatchNorm(dtype=self.dtype, axis_name=self.axis_name, name="bn")(x, train=train)


class DBlock(nn.Module):
    """1x1, dilated 3x3, squeeze-and-excite, 1x1, plus the shortcut.

    Attributes:
      features: output channels.
      dilation_rates: one rate a branch of the 3x3 convolution.
      group_width: channels in a group of the 3x3 convolution.
      stride: 1 or 2, of the 3x3 convolution and the shortcut.
      pool_in_shortcut: see `variants.Backbone`.
      dilated_conv: builds the 3x3 convolution; the search of dilation rates puts its own here.
    """

    features: int
    dilation_rates: DilationRates
    group_width: int
    stride: int = 1
    pool_in_shortcut: bool = True
    dilated_conv: Callable[..., nn.Module] = DilatedConv
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        in_channels = x.shape[-1]

        def batch_norm(name: str, *, use_relu: bool) -> Callable[[Array], Array]:
            layer = BatchNorm(self.dtype, self.axis_name, use_relu, name=name)
            return functools.partial(layer, train=train)

        y = Conv(self.features, dtype=self.dtype, name="conv1")(x)
        y = batch_norm("bn1", use_relu=True)(y)
        y = self.dilated_conv(
            features=self.features,
            dilation_rates=self.dilation_rates,
            group_width=self.group_width,
            stride=self.stride,
            dtype=self.dtype,
            name="conv2",
        )(y)
        y = store_rounded(batch_norm("bn2", use_relu=True)(y))
        # The hidden width follows the block's input, not the 3x3's channels, as in RegNet.
        scale = SqueezeExcite(in_channels // 4, dtype=self.dtype, name="se")(y)
        y = Conv(self.features, dtype=self.dtype, name="conv3")(y, scale)
        y = batch_norm("bn3", use_relu=False)(y)

        if self.stride != 1 or in_channels != self.features:
            x = Shortcut(
                self.features,
                self.stride,
                self.pool_in_shortcut,
                self.dtype,
                self.axis_name,
                name="shortcut",
            )(x, train=train)
        return relu(x + y)
