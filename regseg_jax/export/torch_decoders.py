"""The decoders in PyTorch: features at 1/4, 1/8, 1/16 -> logits at the finest that is used.

See `torch_model`. The order of the attributes is that of the author's state dicts.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regseg_jax.export.torch_layers import (
    ConvBN,
    DBlock,
    GlobalMean,
    SqueezeExcite,
    create_batch_norm,
    create_conv,
    global_mean,
    upsample_to,
)
from regseg_jax.models.variants import Block

Features = tuple[Tensor, Tensor, Tensor]  # at strides 4, 8 and 16
Channels = tuple[int, int, int]  # of the features


class ThreeLevelDecoder(nn.Module):
    """decoder26 (the paper's) and decoder29: sums 1/16 into 1/8, then concatenates 1/4."""

    def __init__(self, channels: Channels, num_classes: int, heads: Channels, width: int):
        super().__init__()
        head4, head8, head16 = heads
        self.head16 = ConvBN(channels[2], head16)
        self.head8 = ConvBN(channels[1], head8)
        self.head4 = ConvBN(channels[0], head4)
        self.conv8 = ConvBN(head8, width, 3)
        self.conv4 = ConvBN(width + head4, width, 3)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, features: Features) -> Tensor:
        """Returns logits at 1/4."""
        x4, x8, x16 = features
        x16, x8, x4 = self.head16(x16), self.head8(x8), self.head4(x4)
        x8 = self.conv8(x8 + upsample_to(x16, x8))
        return self.classifier(self.conv4(torch.cat([upsample_to(x8, x4), x4], 1)))


class SumDecoder(nn.Module):
    """decoder12 and decoder14: adds the heads at 1/16 and 1/8 and convolves once."""

    def __init__(self, channels: Channels, num_classes: int, kernel_size: int):
        super().__init__()
        self.head16 = ConvBN(channels[2], 128)
        self.head8 = ConvBN(channels[1], 128)
        self.conv = ConvBN(128, 128, kernel_size)
        self.classifier = nn.Conv2d(128, num_classes, 1)

    def forward(self, features: Features) -> Tensor:
        """Returns logits at 1/8."""
        x16, x8 = self.head16(features[2]), self.head8(features[1])
        return self.classifier(self.conv(x8 + upsample_to(x16, x8)))


class ConcatenateDecoder(nn.Module):
    """decoder4 and decoder10: concatenates the heads and convolves, or runs a D block."""

    def __init__(self, channels: Channels, num_classes: int, use_d_block: bool):
        super().__init__()
        self.head8 = ConvBN(channels[1], 32)
        self.head16 = ConvBN(channels[2], 128)
        self.conv = DBlock(160, Block(128), 16) if use_d_block else ConvBN(160, 128, 3)
        self.classifier = nn.Conv2d(128, num_classes, 1)

    def forward(self, features: Features) -> Tensor:
        """Returns logits at 1/8."""
        x16, x8 = self.head16(features[2]), self.head8(features[1])
        return self.classifier(self.conv(torch.cat([x8, upsample_to(x16, x8)], 1)))


class LRASPP(nn.Module):
    """The decoder of MobileNetV3 (arXiv 1905.02244, section 6.4): one gate, two classifiers."""

    def __init__(self, channels: Channels, num_classes: int):
        super().__init__()
        self.cbr = ConvBN(channels[2], 128)
        self.scale = nn.Sequential(GlobalMean(), create_conv(channels[2], 128), nn.Sigmoid())
        self.low_classifier = nn.Conv2d(channels[1], num_classes, 1)
        self.high_classifier = nn.Conv2d(128, num_classes, 1)

    def forward(self, features: Features) -> Tensor:
        """Returns logits at 1/8."""
        _, x8, x16 = features
        x16 = upsample_to(self.cbr(x16) * self.scale(x16), x8)
        return self.low_classifier(x8) + self.high_classifier(x16)


class AttentionRefinement(nn.Module):
    """BiSeNet's ARM (arXiv 1808.00897, section 3.2): a 3x3 convolution times a channel gate."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.conv = ConvBN(in_channels, channels, 3)
        self.scale = _Gate(
            GlobalMean(), create_conv(channels, channels), create_batch_norm(channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, channels, H, W]."""
        x = self.conv(x)
        return x * self.scale(x)


class _Gate(nn.Sequential):
    batch_norms = (("1", "2"),)


class FeatureFusion(nn.Module):
    """BiSeNet's FFM (section 3.2): a 1x1 convolution, plus itself through channel attention."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.conv = ConvBN(in_channels, channels)
        self.se = SqueezeExcite(channels, channels // 4)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, channels, H, W]."""
        x = self.conv(x)
        return x + self.se(x)


class BisenetDecoder(nn.Module):
    """BiSeNet's context path on RegSeg's features at 1/16, fused with those at 1/8."""

    def __init__(self, channels: Channels, num_classes: int):
        super().__init__()
        self.arm16 = AttentionRefinement(channels[2], 128)
        self.conv_head16 = ConvBN(128, 128, 3)
        self.conv_avg = ConvBN(channels[2], 128)
        self.ffm = FeatureFusion(channels[1] + 128, 128)
        self.conv = ConvBN(128, 128, 3)
        self.classifier = nn.Conv2d(128, num_classes, 1)

    def forward(self, features: Features) -> Tensor:
        """Returns logits at 1/8."""
        _, x8, x16 = features
        x = self.arm16(x16) + self.conv_avg(global_mean(x16))
        x = self.conv_head16(F.interpolate(x, x8.shape[2:], mode="nearest"))
        return self.classifier(self.conv(self.ffm(torch.cat([x8, x], 1))))


class AdaptiveMean(nn.Module):
    """Means of bins x bins overlapping parts, as `nn.AdaptiveAvgPool2d`, which exports badly."""

    def __init__(self, bins: int):
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, bins, bins]."""
        for axis in (2, 3):
            length = x.shape[axis]
            starts = [i * length // self.bins for i in range(self.bins)]
            # Rounded up without negative numbers, whose division ONNX rounds towards zero.
            ends = [((i + 1) * length + self.bins - 1) // self.bins for i in range(self.bins)]
            parts = [
                x.narrow(axis, start, end - start).mean(axis, keepdim=True)
                for start, end in zip(starts, ends, strict=True)
            ]
            x = torch.cat(parts, axis)
        return x


class PyramidPooling(nn.Module):
    """PSPNet's PPM (arXiv 1612.01105, section 3.2) with bins of 1, 2, 3 and 6."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(AdaptiveMean(bins), ConvBN(in_channels, channels, use_relu=False))
            for bins in (1, 2, 3, 6)
        )
        self.bottleneck = ConvBN(in_channels + 4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, channels, H, W]."""
        levels = [x, *(upsample_to(stage(x), x) for stage in self.stages)]
        return self.bottleneck(torch.cat(levels, 1))


class FlowAlign(nn.Module):
    """SFNet's flow alignment (arXiv 2002.10120, section 3.3): moves high features onto low ones.

    The grid runs from -1 to 1 inclusive while sampling takes pixel centres at halves, as in the
    author's code; the two do not agree and the difference is part of the model.
    """

    def __init__(self, channels: int, flow_channels: int):
        super().__init__()
        self.down_h = create_conv(channels, flow_channels)
        self.down_l = create_conv(channels, flow_channels)
        self.flow_make = create_conv(2 * flow_channels, 2, 3)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """Samples high [B, C, h, w] at low's positions: [B, C, H, W]."""
        height, width = low.shape[2:]
        flow = torch.cat([upsample_to(self.down_h(high), low), self.down_l(low)], 1)
        flow = self.flow_make(flow)
        # Positions need float32 at least: half precision cannot tell neighbouring pixels apart.
        if flow.dtype in (torch.float16, torch.bfloat16):
            flow = flow.float()
        options = {"dtype": flow.dtype, "device": flow.device}
        x = torch.linspace(-1, 1, width, **options) + flow[:, 0] / width
        y = torch.linspace(-1, 1, height, **options)[:, None] + flow[:, 1] / height
        grid = torch.stack([x, y], -1)
        sampled = F.grid_sample(
            high.to(grid.dtype), grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
        return sampled.to(low.dtype)


class SFNetDecoder(nn.Module):
    """SFNet's decoder on the features at 1/16 and 1/8."""

    def __init__(self, channels: Channels, num_classes: int):
        super().__init__()
        self.head16 = PyramidPooling(channels[2], 64)
        self.head8 = ConvBN(channels[1], 64)
        self.fpn_align = FlowAlign(64, 32)
        self.conv = ConvBN(64, 64, 3)
        self.conv_last = nn.Sequential(ConvBN(128, 64, 3), nn.Conv2d(64, num_classes, 1))

    def forward(self, features: Features) -> Tensor:
        """Returns logits at 1/8."""
        high, low = self.head16(features[2]), self.head8(features[1])
        x = self.conv(low + self.fpn_align(low, high))
        high = F.interpolate(high, x.shape[2:], mode="bilinear", align_corners=True)
        return self.conv_last(torch.cat([x, high], 1))


DECODERS: dict[str, Callable[[Channels, int], nn.Module]] = {
    "decoder4": functools.partial(ConcatenateDecoder, use_d_block=False),
    "decoder10": functools.partial(ConcatenateDecoder, use_d_block=True),
    "decoder12": functools.partial(SumDecoder, kernel_size=1),
    "decoder14": functools.partial(SumDecoder, kernel_size=3),
    "decoder26": functools.partial(ThreeLevelDecoder, heads=(8, 128, 128), width=64),
    "decoder29": functools.partial(ThreeLevelDecoder, heads=(16, 256, 256), width=128),
    "lraspp": LRASPP,
    "BisenetDecoder": BisenetDecoder,
    "SFNetDecoder": SFNetDecoder,
}
