"""The decoders of the paper's tables: features at strides 4, 8 and 16 -> logits.

Each takes {"x4", "x8", "x16"}, every one [B, H/s, W/s, C], and returns logits
[B, h, w, num_classes] at its finest stride; `regseg.RegSeg` upsamples them to the image's size.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from regseg_jax.models import variants
from regseg_jax.models.blocks import DBlock
from regseg_jax.models.layers import BatchNorm, Conv, ConvBN, SqueezeExcite, global_mean
from regseg_jax.ops.resize import adaptive_average_pool, upsample_bilinear
from regseg_jax.ops.sample import sample_bilinear

Features = dict[str, Array]


def _options(module: nn.Module) -> dict[str, Any]:
    """What a module hands on to those of its parts that hold a batch norm."""
    return {"dtype": module.dtype, "axis_name": module.axis_name}


def _upsample_to(x: Array, reference: Array) -> Array:
    return upsample_bilinear(x, reference.shape[1:3])


def _classifier(num_classes: int, dtype: DTypeLike, name: str = "classifier") -> Conv:
    return Conv(num_classes, use_bias=True, dtype=dtype, name=name)


class ThreeLevelDecoder(nn.Module):
    """decoder26 (the paper's, section 3.4) and decoder29: sums 1/16 into 1/8, then adds 1/4."""

    num_classes: int
    head16: int
    head8: int
    head4: int
    conv8: int
    conv4: int
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, features: Features, *, train: bool) -> Array:
        """Returns logits at 1/4."""

        def conv_bn(channels: int, kernel_size: int, name: str) -> Callable[[Array], Array]:
            layer = ConvBN(channels, kernel_size, **_options(self), name=name)
            return functools.partial(layer, train=train)

        x16 = conv_bn(self.head16, 1, "head16")(features["x16"])
        x8 = conv_bn(self.head8, 1, "head8")(features["x8"])
        x4 = conv_bn(self.head4, 1, "head4")(features["x4"])
        x8 = conv_bn(self.conv8, 3, "conv8")(x8 + _upsample_to(x16, x8))
        x4 = jnp.concatenate([_upsample_to(x8, x4), x4], axis=-1)
        x4 = conv_bn(self.conv4, 3, "conv4")(x4)
        return _classifier(self.num_classes, self.dtype)(x4)


class TwoLevelDecoder(nn.Module):
    """decoder4, 10, 12 and 14: merges the heads at 1/16 and 1/8 and convolves once."""

    num_classes: int
    head16: int
    head8: int
    merge: Literal["concatenate", "sum"]
    conv: Literal["1x1", "3x3", "d_block"]
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, features: Features, *, train: bool) -> Array:
        """Returns logits at 1/8."""
        x16 = ConvBN(self.head16, **_options(self), name="head16")(features["x16"], train=train)
        x8 = ConvBN(self.head8, **_options(self), name="head8")(features["x8"], train=train)
        x16 = _upsample_to(x16, x8)
        x = x8 + x16 if self.merge == "sum" else jnp.concatenate([x8, x16], axis=-1)
        if self.conv == "d_block":
            conv = DBlock(128, (1,), group_width=16, **_options(self), name="conv")
        else:
            conv = ConvBN(128, int(self.conv[0]), **_options(self), name="conv")
        return _classifier(self.num_classes, self.dtype)(conv(x, train=train))


class LRASPP(nn.Module):
    """The decoder of MobileNetV3 (arXiv 1905.02244, section 6.4): one gate, two classifiers."""

    num_classes: int
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, features: Features, *, train: bool) -> Array:
        """Returns logits at 1/8."""
        x16, x8 = features["x16"], features["x8"]
        gate = nn.sigmoid(Conv(128, dtype=self.dtype, name="gate")(global_mean(x16)))
        x = ConvBN(128, **_options(self), name="cbr")(x16, train=train) * gate
        low = _classifier(self.num_classes, self.dtype, "low_classifier")(x8)
        high = _classifier(self.num_classes, self.dtype, "high_classifier")(_upsample_to(x, x8))
        return low + high


class AttentionRefinement(nn.Module):
    """BiSeNet's ARM (arXiv 1808.00897, section 3.2): a 3x3 convolution times a channel gate."""

    features: int
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, H, W, C] -> [B, H, W, features]."""
        x = ConvBN(self.features, 3, **_options(self), name="conv")(x, train=train)
        gate = Conv(self.features, dtype=self.dtype, name="gate_conv")(global_mean(x))
        gate = BatchNorm(**_options(self), name="gate_bn")(gate, train=train)
        return x * nn.sigmoid(gate)


class FeatureFusion(nn.Module):
    """BiSeNet's FFM (section 3.2): a 1x1 convolution, plus itself through channel attention."""

    features: int
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, H, W, C] -> [B, H, W, features]."""
        x = ConvBN(self.features, **_options(self), name="conv")(x, train=train)
        return x + x * SqueezeExcite(self.features // 4, dtype=self.dtype, name="se")(x)


class BisenetDecoder(nn.Module):
    """BiSeNet's context path on RegSeg's features at 1/16, fused with those at 1/8."""

    num_classes: int
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, features: Features, *, train: bool) -> Array:
        """Returns logits at 1/8."""
        x16, x8 = features["x16"], features["x8"]
        average = ConvBN(128, **_options(self), name="conv_avg")(global_mean(x16), train=train)
        x = AttentionRefinement(128, **_options(self), name="arm16")(x16, train=train) + average
        x = _upsample_nearest_to(x, x8)
        x = ConvBN(128, 3, **_options(self), name="conv_head16")(x, train=train)
        x = jnp.concatenate([x8, x], axis=-1)
        x = FeatureFusion(128, **_options(self), name="ffm")(x, train=train)
        x = ConvBN(128, 3, **_options(self), name="conv")(x, train=train)
        return _classifier(self.num_classes, self.dtype)(x)


def _upsample_nearest_to(x: Array, reference: Array) -> Array:
    for axis in (1, 2):
        length = reference.shape[axis]
        x = jnp.take(x, jnp.arange(length) * x.shape[axis] // length, axis=axis)
    return x


class PyramidPooling(nn.Module):
    """PSPNet's PPM (arXiv 1612.01105, section 3.2) with bins of 1, 2, 3 and 6."""

    features: int
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, H, W, C] -> [B, H, W, features]."""
        levels = [x]
        for i, bins in enumerate((1, 2, 3, 6)):
            pooled = adaptive_average_pool(x, bins)
            pooled = ConvBN(self.features, use_relu=False, **_options(self), name=f"stages_{i}")(
                pooled, train=train
            )
            levels.append(_upsample_to(pooled, x))
        x = jnp.concatenate(levels, axis=-1)
        return ConvBN(self.features, **_options(self), name="bottleneck")(x, train=train)


class FlowAlign(nn.Module):
    """SFNet's flow alignment (arXiv 2002.10120, section 3.3): moves high features onto low ones.

    The grid runs from -1 to 1 inclusive while sampling takes pixel centres at halves, as in the
    author's code; the two do not agree and the difference is part of the model.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, low: Array, high: Array) -> Array:
        """Samples high [B, h, w, C] at low's positions: [B, H, W, C]."""
        height, width = low.shape[1:3]
        down_high = Conv(self.features, dtype=self.dtype, name="down_h")(high)
        down_low = Conv(self.features, dtype=self.dtype, name="down_l")(low)
        flow = jnp.concatenate([_upsample_to(down_high, low), down_low], axis=-1)
        flow = Conv(2, 3, dtype=self.dtype, name="flow_make")(flow)

        dtype = jnp.promote_types(self.dtype, jnp.float32)
        x = jnp.linspace(-1, 1, width, dtype=dtype)[None, None, :] + flow[..., 0] / width
        y = jnp.linspace(-1, 1, height, dtype=dtype)[None, :, None] + flow[..., 1] / height
        rows = ((y + 1) * high.shape[1] - 1) / 2
        columns = ((x + 1) * high.shape[2] - 1) / 2
        return sample_bilinear(high, rows, columns)


class SFNetDecoder(nn.Module):
    """SFNet's decoder on the features at 1/16 and 1/8."""

    num_classes: int
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, features: Features, *, train: bool) -> Array:
        """Returns logits at 1/8."""
        high = PyramidPooling(64, **_options(self), name="head16")(features["x16"], train=train)
        low = ConvBN(64, **_options(self), name="head8")(features["x8"], train=train)
        x = low + FlowAlign(32, dtype=self.dtype, name="fpn_align")(low, high)
        x = ConvBN(64, 3, **_options(self), name="conv")(x, train=train)
        high = upsample_bilinear(high, x.shape[1:3], align_corners=True)
        x = jnp.concatenate([x, high], axis=-1)
        x = ConvBN(64, 3, **_options(self), name="last_conv")(x, train=train)
        return _classifier(self.num_classes, self.dtype, "last_classifier")(x)


_DECODERS: dict[str, Callable[..., nn.Module]] = {
    "decoder4": functools.partial(
        TwoLevelDecoder, head16=128, head8=32, merge="concatenate", conv="3x3"
    ),
    "decoder10": functools.partial(
        TwoLevelDecoder, head16=128, head8=32, merge="concatenate", conv="d_block"
    ),
    "decoder12": functools.partial(TwoLevelDecoder, head16=128, head8=128, merge="sum", conv="1x1"),
    "decoder14": functools.partial(TwoLevelDecoder, head16=128, head8=128, merge="sum", conv="3x3"),
    "decoder26": functools.partial(
        ThreeLevelDecoder, head16=128, head8=128, head4=8, conv8=64, conv4=64
    ),
    "decoder29": functools.partial(
        ThreeLevelDecoder, head16=256, head8=256, head4=16, conv8=128, conv4=128
    ),
    "lraspp": LRASPP,
    "BisenetDecoder": BisenetDecoder,
    "SFNetDecoder": SFNetDecoder,
}
assert set(_DECODERS) == set(variants.DECODERS)


def create_decoder(
    name: str, num_classes: int, dtype: DTypeLike, axis_name: str | None = None
) -> nn.Module:
    """The module of a row of the table, named `decoder` in its parent."""
    return _DECODERS[name](
        num_classes=num_classes, dtype=dtype, axis_name=axis_name, name="decoder"
    )
