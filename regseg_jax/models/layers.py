"""The layers that every part of RegSeg is made of, with PyTorch's conventions.

Where these differ from Flax's own layers: the convolution pads by its dilation rate and starts
uniform in +-1/sqrt(fan_in), bias too; batch norm's running variance takes the unbiased batch
variance. Each difference is held by tests/models/test_layers.py and by the parity tests.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from regseg_jax.models.variants import BATCH_NORM_EPSILON, BATCH_NORM_UPDATE
from regseg_jax.ops.barrier import gpu_barrier
from regseg_jax.ops.batch_norm import batch_norm
from regseg_jax.ops.conv import grouped_conv
from regseg_jax.ops.height_shards import use_height_shards
from regseg_jax.ops.pooled_conv import pooled_conv
from regseg_jax.ops.scaled_conv import scaled_conv
from regseg_jax.ops.space_to_depth import space_to_depth, sum_channels

kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _wide(dtype: DTypeLike) -> DTypeLike:
    """The dtype of statistics: float32 for half precision, otherwise the dtype itself."""
    return jnp.promote_types(dtype, jnp.float32)


class Conv(nn.Module):
    """A convolution that keeps the size (or takes ceil(size / stride)): [B, H, W, C] -> [..., F].

    Attributes:
      features: output channels.
      kernel_size: 1 or 3.
      group_width: input channels a group; None is one group.
      use_pool: whether a 1x1 convolution takes averages of 2x2 pixels, in place of a stride.
      dtype: of the computation and the output; parameters are float32.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    dilation_rate: int = 1
    group_width: int | None = None
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32
    use_pool: bool = False

    @nn.compact
    def __call__(self, x: Array, input_scale: Array | None = None) -> Array:
        """Applies the convolution to [B, H, W, C], times input_scale [B, 1, 1, C] if given.

        Only 1x1 convolutions of one group and stride 1 take an input_scale.
        """
        group_width = self.group_width or x.shape[-1]
        shape = (self.kernel_size, self.kernel_size, group_width, self.features)
        kernel = self.param("kernel", kernel_init, shape)
        groups = x.shape[-1] // group_width
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if input_scale is not None:
            if self.stride != 1 or self.use_pool:
                raise ValueError(f"input_scale needs stride 1, not {self.stride}, and no pool")
            y = scaled_conv(x, kernel, input_scale)
        elif self.use_pool:
            y = pooled_conv(x, kernel)
        else:
            y = grouped_conv(
                x,
                kernel,
                stride=self.stride,
                dilation_rate=self.dilation_rate,
                groups=groups,
            )
        if self.use_bias:
            bound = (self.kernel_size**2 * group_width) ** -0.5
            bias = self.param("bias", _uniform(bound), (self.features,))
            y += bias.astype(self.dtype)
        return y


def _uniform(bound: float) -> nn.initializers.Initializer:
    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class BatchNorm(nn.Module):
    """Batch norm over all axes but the last, as `torch.nn.BatchNorm2d`.

    Statistics are computed and kept in float32 whatever the dtype. Under `jit` on a sharded batch
    the means run over the global batch, so it is synchronised over the mesh by itself. Inside
    `jax.shard_map` an array is one device's shard: there `axis_name` synchronises.

    Without a scale among its parameters it is folded (see `models.folding`): its bias is added.

    Attributes:
      axis_name: a mapped axis that training statistics run over too, by one `lax.psum`; None: the
        statistics are those of the array at hand. Gradients of parameters are always those of the
        array at hand, see `ops.batch_norm`.
      use_relu: whether negative results become 0.
    """

    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    use_relu: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Normalises [..., C] with the batch's statistics (train) or the running ones."""
        channels = x.shape[-1:]
        bias = self.param("bias", nn.initializers.zeros, channels)
        if not self.is_initializing() and not self.has_variable("params", "scale"):
            if train:
                raise ValueError("folded batch norms cannot be trained; use the variables unfolded")
            y = x + bias.astype(x.dtype)
            return nn.relu(y) if self.use_relu else y
        scale = self.param("scale", nn.initializers.ones, channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)

        if train:
            y, mean, unbiased_var = batch_norm(
                x,
                scale,
                bias,
                running_mean.value,
                epsilon=BATCH_NORM_EPSILON,
                use_relu=self.use_relu,
                # Shapes are initialised outside of any mapped axis.
                axis_name=None if self.is_initializing() else self.axis_name,
            )
            if not self.is_initializing():
                running_mean.value += BATCH_NORM_UPDATE * (mean - running_mean.value)
                running_var.value += BATCH_NORM_UPDATE * (unbiased_var - running_var.value)
            return y.astype(self.dtype)
        multiplier = scale * jax.lax.rsqrt(running_var.value + BATCH_NORM_EPSILON)
        offset = bias - running_mean.value * multiplier
        y = (x.astype(_wide(x.dtype)) * multiplier + offset).astype(self.dtype)
        return nn.relu(y) if self.use_relu else y


class ConvBN(nn.Module):
    """Convolution, batch norm, and ReLU unless told otherwise."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    use_relu: bool = True
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        x = Conv(self.features, self.kernel_size, self.stride, dtype=self.dtype, name="conv")(x)
        return BatchNorm(self.dtype, self.axis_name, self.use_relu, name="bn")(x, train=train)


class SqueezeExcite(nn.Module):
    """The scales of channel attention: sigmoid(conv(relu(conv(mean of x)))) (paper, figure 2)."""

    hidden_channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, 1, 1, C] in (0, 1)."""
        scale = global_mean(x)
        scale = Conv(self.hidden_channels, use_bias=True, dtype=self.dtype, name="conv1")(scale)
        scale = Conv(x.shape[-1], use_bias=True, dtype=self.dtype, name="conv2")(nn.relu(scale))
        return nn.sigmoid(scale)


@jax.custom_vjp
def store_rounded(x: Array) -> Array:
    """The same array. What is read twice is stored, and XLA would on GPUs store the float32 values
    that it computed for half precision, twice as large. The gradient needs no storing.
    """
    return x if x.dtype.itemsize > 2 else gpu_barrier(x)


store_rounded.defvjp(lambda x: (store_rounded(x), None), lambda _, dy: (dy,))


@jax.custom_vjp
def relu(x: Array) -> Array:
    """max(x, 0). Its gradient reads the result, which is stored anyway; that of `jax.nn.relu`
    reads x, which XLA computes again from more arrays.
    """
    return jnp.maximum(x, 0)


def _relu_forward(x: Array) -> tuple[Array, Array]:
    y = relu(x)
    return y, y


relu.defvjp(_relu_forward, lambda y, dy: (jnp.where(gpu_barrier(y) > 0, dy, 0),))


def global_mean(x: Array) -> Array:
    """[B, H, W, C] -> [B, 1, 1, C], summed in float32 at least, and over height shards."""
    shards = use_height_shards.value
    total = space_to_depth(shards.mask(x)).sum((1, 2), keepdims=True, dtype=_wide(x.dtype))
    total = shards.sum(sum_channels(total, x.shape[3]))
    return (total / (shards.get_height(x.shape[1]) * x.shape[2])).astype(x.dtype)
