"""RegSeg in PyTorch: for deployment, and to load and to write the author's weights.

Imports nothing but torch, so this one file runs on a machine without JAX. Names and order of the
state dicts are the author's; what is computed is the same as in `regseg_jax.models`, whose tables
are repeated here (a test holds them equal). No shape or branch depends on the values of a tensor,
so models can be compiled, captured in CUDA graphs, exported, and run in channels_last or autocast.
"""

import copy
import functools
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Features = tuple[Tensor, Tensor, Tensor]  # at strides 4, 8 and 16

# --- The tables of regseg_jax/models/variants.py ---


class Block(NamedTuple):
    """One D block: its output channels, the rate of each of its branches, its stride."""

    out_channels: int
    dilation_rates: tuple[int, ...] = (1,)
    stride: int = 1


class Backbone(NamedTuple):
    """(name, blocks) of the stages behind the stem; see `variants.Backbone` for the fields."""

    stages: tuple[tuple[str, tuple[Block, ...]], ...]
    group_width: int = 16
    pool_in_shortcut: bool = True


STEM_CHANNELS = 32

_REGSEG = ((1,), (1, 2), *4 * ((1, 4),), *7 * ((1, 14),))
_GROWING = ((1,), (1, 2), (1, 4), (1, 6), (1, 8), (1, 10))
_SEARCHED = (
    *((1, 1), (1, 2), (1, 2), (1, 3), (2, 3), (2, 7), (2, 3)),
    *((2, 6), (2, 5), (2, 9), (2, 11), (4, 7), (5, 14)),
)


def _regseg(*rates: tuple[int, ...]) -> Backbone:
    stage8 = (Block(128, stride=2), Block(128), Block(128))
    stage16 = (Block(256, stride=2), *(Block(256, r) for r in rates[:-1]), Block(320, rates[-1]))
    return Backbone((("stage4", (Block(48, stride=2),)), ("stage8", stage8), ("stage16", stage16)))


BACKBONES = {
    "exp30": _regseg(*5 * ((1, 4),), *8 * ((1, 10),)),
    "exp43": _regseg(*_GROWING, *7 * ((1, 12),)),
    "exp46": _regseg(*_GROWING[:5], *8 * ((1, 10),)),
    "exp47": _regseg(*_GROWING, (1, 12), *6 * ((1, 14),)),
    "exp48": _regseg(*_REGSEG),
    "exp49": _regseg((1,), (1, 2), *6 * ((1, 4),), *5 * ((1, 6, 12, 18),)),
    "exp50": _regseg(*_GROWING, *7 * ((1, 3, 6, 12),)),
    "exp51": _regseg(*_GROWING, *7 * ((1, 4, 8, 12),)),
    "exp52": _regseg((1,), (1, 2), (1, 4), *10 * ((1, 6),)),
    "searched": _regseg(*_SEARCHED),
    "exp53": Backbone(
        (
            ("stage4", (Block(48, stride=2), Block(48))),
            ("stage8", (Block(120, stride=2), *5 * (Block(120),))),
            (
                "stage16",
                (
                    Block(336, stride=2),
                    *(Block(336, rates) for rates in _REGSEG[:-1]),
                    Block(384, _REGSEG[-1]),
                ),
            ),
        ),
        group_width=24,
    ),
    "regnety600mf": Backbone(
        (
            ("stage4", (Block(48, stride=2),)),
            ("stage8", (Block(112, stride=2), *2 * (Block(112),))),
            ("stage16", (Block(256, stride=2), *6 * (Block(256),))),
            ("stage32", (Block(608), *3 * (Block(608, (2,)),))),
        ),
        pool_in_shortcut=False,
    ),
}

ALIASES = {"regseg": "exp48_decoder26", "regseg_large": "exp53_decoder29"}

# --- Layers. The order of the attributes is that of the author's state dicts. ---


class ConvBN(nn.Module):
    """Convolution without bias, batch norm, and ReLU unless told otherwise."""

    batch_norms = (("conv", "bn"),)

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, **options):
        super().__init__()
        self.use_relu = options.pop("use_relu", True)
        self.conv = _conv(in_channels, out_channels, kernel_size, **options)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out_channels, ceil(H / stride), ceil(W / stride)]."""
        x = self.bn(self.conv(x))
        return F.relu(x) if self.use_relu else x


def _conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    stride: int = 1,
    dilation_rate: int = 1,
    groups: int = 1,
) -> nn.Conv2d:
    padding = dilation_rate * (kernel_size // 2)
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding, dilation_rate, groups, bias=False
    )


def _global_mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


class GlobalMean(nn.Module):
    """[B, C, H, W] -> [B, C, 1, 1]."""

    forward = staticmethod(_global_mean)


def _upsample_to(x: Tensor, reference: Tensor) -> Tensor:
    return F.interpolate(x, reference.shape[2:], mode="bilinear", align_corners=False)


class SqueezeExcite(nn.Module):
    """x * sigmoid(conv(relu(conv(mean of x)))), the convolutions with biases."""

    def __init__(self, channels: int, hidden_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden_channels, 1)
        self.conv2 = nn.Conv2d(hidden_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        return x * torch.sigmoid(self.conv2(F.relu(self.conv1(_global_mean(x)))))


class DilatedConv(nn.Module):
    """Splits the channels evenly and convolves part i with dilation rate i."""

    def __init__(self, channels: int, dilation_rates: tuple[int, ...], stride: int, groups: int):
        super().__init__()
        branches = len(dilation_rates)
        self.part = channels // branches
        self.convs = nn.ModuleList(
            _conv(self.part, self.part, 3, stride, rate, groups // branches)
            for rate in dilation_rates
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, ceil(H / stride), ceil(W / stride)]."""
        parts = x.split(self.part, dim=1)
        return torch.cat([conv(part) for conv, part in zip(self.convs, parts, strict=True)], 1)


class Shortcut(nn.Module):
    """[2x2 average pool] -> 1x1 convolution -> batch norm, beside a D block."""

    batch_norms = (("conv", "bn"),)

    def __init__(self, in_channels: int, out_channels: int, stride: int, use_pool: bool):
        super().__init__()
        self.use_pool = use_pool and stride == 2
        self.conv = _conv(in_channels, out_channels, stride=1 if self.use_pool else stride)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out_channels, ceil(H / stride), ceil(W / stride)]."""
        if self.use_pool:
            x = F.avg_pool2d(x, 2, 2, ceil_mode=True)
        return self.bn(self.conv(x))


class DBlock(nn.Module):
    """1x1, dilated grouped 3x3, squeeze-and-excite, 1x1, plus the shortcut (paper, figure 2)."""

    batch_norms = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))

    def __init__(
        self, in_channels: int, block: Block, group_width: int, pool_in_shortcut: bool = True
    ):
        super().__init__()
        channels, rates, stride = block
        groups = channels // group_width
        self.conv1 = _conv(in_channels, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        if len(rates) == 1:
            self.conv2 = _conv(channels, channels, 3, stride, rates[0], groups)
        else:
            self.conv2 = DilatedConv(channels, rates, stride, groups)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = _conv(channels, channels)
        self.bn3 = nn.BatchNorm2d(channels)
        self.se = SqueezeExcite(channels, in_channels // 4)
        if stride != 1 or in_channels != channels:
            self.shortcut = Shortcut(in_channels, channels, stride, pool_in_shortcut)
        else:
            self.shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out_channels, ceil(H / stride), ceil(W / stride)]."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(self.se(y)))
        return F.relu(self.shortcut(x) + y)


class BackboneStages(nn.Module):
    """The blocks of every stage; gives the last output at strides 4, 8 and 16.

    Attributes:
      out_channels: those of the three outputs.
    """

    def __init__(self, spec: Backbone):
        super().__init__()
        channels, stride, channels_at = STEM_CHANNELS, 2, {}
        self.stages = []  # (name, stride behind it)
        for name, rows in spec.stages:
            blocks = []
            for row in rows:
                blocks.append(DBlock(channels, row, spec.group_width, spec.pool_in_shortcut))
                channels, stride = row.out_channels, stride * row.stride
            # A stage of one block has no index in the author's state dicts.
            self.add_module(name, blocks[0] if len(blocks) == 1 else nn.Sequential(*blocks))
            self.stages.append((name, stride))
            channels_at[stride] = channels
        self.out_channels = tuple(channels_at[stride] for stride in (4, 8, 16))

    def forward(self, x: Tensor) -> Features:
        """[B, 32, H/2, W/2] -> features at 1/4, 1/8, 1/16."""
        features = {}
        for name, stride in self.stages:
            x = getattr(self, name)(x)
            features[stride] = x
        return features[4], features[8], features[16]


# --- Decoders: features at 1/4, 1/8, 1/16 -> logits at the finest of them that is used ---

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
        x8 = self.conv8(x8 + _upsample_to(x16, x8))
        return self.classifier(self.conv4(torch.cat([_upsample_to(x8, x4), x4], 1)))


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
        return self.classifier(self.conv(x8 + _upsample_to(x16, x8)))


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
        return self.classifier(self.conv(torch.cat([x8, _upsample_to(x16, x8)], 1)))


class LRASPP(nn.Module):
    """The decoder of MobileNetV3 (arXiv 1905.02244, section 6.4): one gate, two classifiers."""

    def __init__(self, channels: Channels, num_classes: int):
        super().__init__()
        self.cbr = ConvBN(channels[2], 128)
        self.scale = nn.Sequential(GlobalMean(), _conv(channels[2], 128), nn.Sigmoid())
        self.low_classifier = nn.Conv2d(channels[1], num_classes, 1)
        self.high_classifier = nn.Conv2d(128, num_classes, 1)

    def forward(self, features: Features) -> Tensor:
        """Returns logits at 1/8."""
        _, x8, x16 = features
        x16 = _upsample_to(self.cbr(x16) * self.scale(x16), x8)
        return self.low_classifier(x8) + self.high_classifier(x16)


class AttentionRefinement(nn.Module):
    """BiSeNet's ARM (arXiv 1808.00897, section 3.2): a 3x3 convolution times a channel gate."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.conv = ConvBN(in_channels, channels, 3)
        self.scale = _Gate(
            GlobalMean(), _conv(channels, channels), nn.BatchNorm2d(channels), nn.Sigmoid()
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
        x = self.arm16(x16) + self.conv_avg(_global_mean(x16))
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
        levels = [x, *(_upsample_to(stage(x), x) for stage in self.stages)]
        return self.bottleneck(torch.cat(levels, 1))


class FlowAlign(nn.Module):
    """SFNet's flow alignment (arXiv 2002.10120, section 3.3): moves high features onto low ones.

    The grid runs from -1 to 1 inclusive while sampling takes pixel centres at halves, as in the
    author's code; the two do not agree and the difference is part of the model.
    """

    def __init__(self, channels: int, flow_channels: int):
        super().__init__()
        self.down_h = _conv(channels, flow_channels)
        self.down_l = _conv(channels, flow_channels)
        self.flow_make = _conv(2 * flow_channels, 2, 3)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """Samples high [B, C, h, w] at low's positions: [B, C, H, W]."""
        height, width = low.shape[2:]
        flow = torch.cat([_upsample_to(self.down_h(high), low), self.down_l(low)], 1)
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

# --- The model, and what is done to it ---


class RegSeg(nn.Module):
    """Stem, backbone and decoder: images -> logits at the images' size."""

    def __init__(
        self, spec: Backbone, decoder: Callable[[Channels, int], nn.Module], num_classes: int
    ):
        super().__init__()
        self.stem = ConvBN(3, STEM_CHANNELS, 3, stride=2)
        self.body = BackboneStages(spec)
        self.decoder = decoder(self.body.out_channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Computes the logits of each pixel.

        Args:
          images: [B, 3, H, W], normalised by ImageNet's mean and deviation; any H and W.

        Returns:
          Logits [B, num_classes, H, W], of the weights' dtype (of autocast's, under it).
        """
        return _upsample_to(self.decoder(self.body(self.stem(images))), images)


def create_torch_model(name: str, num_classes: int) -> RegSeg:
    """Builds a model by name, in training mode, with PyTorch's random initial weights.

    Args:
      name: `BACKBONE_DECODER`, such as `exp48_decoder26`, or an alias (`regseg`); or
        `BACKBONE@RATES_DECODER`, see `variants.get_variant`, as files of searched models say.
      num_classes: at least 1.

    Raises:
      ValueError: if there is no such model or the class count is not positive.
    """
    backbone, _, decoder = ALIASES.get(name, name).partition("_")
    backbone, at, rates = backbone.partition("@")
    if backbone not in BACKBONES or decoder not in DECODERS:
        raise ValueError(
            f"unknown model {name!r}: use BACKBONE_DECODER with a backbone of "
            f"{', '.join(BACKBONES)} and a decoder of {', '.join(DECODERS)}, "
            f"or an alias of {', '.join(ALIASES)}"
        )
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; a model needs at least 1 class")
    spec = _replace_dilation_rates(BACKBONES[backbone], rates) if at else BACKBONES[backbone]
    return RegSeg(spec, DECODERS[decoder], num_classes)


def _replace_dilation_rates(backbone: Backbone, rates: str) -> Backbone:
    """Other rates, as `1-1,2-1,4`, for the blocks at 1/16, the strided one left out."""
    remaining = [tuple(int(rate) for rate in block.split(",")) for block in rates.split("-")]
    stride, stages = 2, []
    for name, blocks in backbone.stages:
        replaced = []
        for block in blocks:
            if stride == 16:
                if not remaining:
                    raise ValueError(f"the rates {rates} are too few for the blocks at 1/16")
                block = block._replace(dilation_rates=remaining.pop(0))
            stride *= block.stride
            replaced.append(block)
        stages.append((name, tuple(replaced)))
    if remaining:
        raise ValueError(f"the rates {rates} are more than there are blocks at 1/16")
    return backbone._replace(stages=tuple(stages))


def fuse_batch_norm(model: RegSeg) -> RegSeg:
    """Folds every batch norm into the convolution before it, for inference.

    Returns:
      A copy in evaluation mode whose convolutions have biases and whose batch norms are
      identities. The model itself is left as it is.
    """
    fused = copy.deepcopy(model).eval()
    for module in fused.modules():
        for conv_name, bn_name in getattr(module, "batch_norms", ()):
            conv = getattr(module, conv_name)
            branches = list(conv.convs) if isinstance(conv, DilatedConv) else [conv]
            _fold(getattr(module, bn_name), branches)
            setattr(module, bn_name, nn.Identity())
    return fused


@torch.no_grad()
def _fold(bn: nn.BatchNorm2d, branches: list[nn.Conv2d]) -> None:
    """Folds one batch norm into the convolutions whose concatenated outputs it normalises."""
    # In float64, so that folding costs no accuracy.
    multiplier = bn.weight.double() * (bn.running_var.double() + bn.eps).rsqrt()
    offset = bn.bias.double() - bn.running_mean.double() * multiplier
    sizes = [conv.out_channels for conv in branches]
    for conv, scale, bias in zip(
        branches, multiplier.split(sizes), offset.split(sizes), strict=True
    ):
        conv.weight.copy_(conv.weight.double() * scale[:, None, None, None])
        conv.bias = nn.Parameter(bias.to(conv.weight.dtype))


def load_state_dict_file(path: str | PathLike) -> dict[str, Tensor]:
    """Reads the state dict of a file by `torch.save`: bare, or under the key "model".

    Returns:
      Names to tensors, on the CPU. Nothing but tensors and plain containers is unpickled.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if it is no PyTorch file, holds other objects, has no state dict, or a tensor
        in it is not finite.
    """
    content = _load(path)
    if isinstance(content, Mapping):
        content = content.get("model", content)
    if not (
        isinstance(content, Mapping)
        and content
        and all(isinstance(name, str) for name in content)
        and all(isinstance(tensor, Tensor) for tensor in content.values())
    ):
        raise ValueError(
            f'{path} has no state dict, neither bare nor under the key "model"; '
            "save one: torch.save(model.state_dict(), path)"
        )
    broken = [name for name, tensor in content.items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(
            f"{path} has NaN or infinity in {', '.join(broken)}; the training has diverged: "
            "use an earlier checkpoint"
        )
    return dict(content)


def load_metadata(path: str | PathLike) -> dict[str, Any]:
    """What `regseg_jax.export` wrote beside the state dict: name, num_classes and others.

    Returns:
      Nothing for files that others wrote.

    Raises:
      OSError, ValueError: as `load_state_dict_file`.
    """
    content = _load(path)
    if not isinstance(content, Mapping) or "model" not in content:
        return {}
    return {key: value for key, value in content.items() if key != "model"}


def _load(path: str | PathLike) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged files raise anything, KeyError and EOFError included
        if "GLOBAL" in str(error):
            raise ValueError(
                f"{path} holds Python objects besides tensors, which could run code when read; "
                "save the state dict alone: torch.save(model.state_dict(), path)"
            ) from error
        raise ValueError(
            f"{path} is no PyTorch file, or a damaged one; write it with torch.save"
        ) from error


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Sets all parameters and buffers of the model, strictly.

    Raises:
      ValueError: names all that are missing, unexpected or of another shape, in one message;
        the model is unchanged.
    """
    expected = model.state_dict()
    problems = [
        f"missing {name} {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name not in state_dict
    ]
    problems += [f"unexpected {name}" for name in state_dict if name not in expected]
    problems += [
        f"{name} has shape {list(tensor.shape)}, not {list(expected[name].shape)}"
        for name, tensor in state_dict.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    if problems:
        raise ValueError(
            f"the state dict does not fit the model: {'; '.join(problems)}. "
            "Load it into the variant and number of classes that it was trained as"
        )
    model.load_state_dict(state_dict)
