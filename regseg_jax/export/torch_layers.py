"""The layers of RegSeg in PyTorch, and the D block; see `torch_model`.

The order of the attributes is that of the author's state dicts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regseg_jax.models.variants import BATCH_NORM_EPSILON, BATCH_NORM_UPDATE, Block


class ConvBN(nn.Module):
    """Convolution without bias, batch norm, and ReLU unless told otherwise."""

    batch_norms = (("conv", "bn"),)

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, **options):
        super().__init__()
        self.use_relu = options.pop("use_relu", True)
        self.conv = create_conv(in_channels, out_channels, kernel_size, **options)
        self.bn = create_batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out_channels, ceil(H / stride), ceil(W / stride)]."""
        x = self.bn(self.conv(x))
        return F.relu(x) if self.use_relu else x


def create_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    stride: int = 1,
    dilation_rate: int = 1,
    groups: int = 1,
) -> nn.Conv2d:
    """A convolution without bias that keeps the size, or takes ceil(size / stride)."""
    padding = dilation_rate * (kernel_size // 2)
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding, dilation_rate, groups, bias=False
    )


def create_batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm as `models.layers.BatchNorm` computes it."""
    return nn.BatchNorm2d(channels, BATCH_NORM_EPSILON, BATCH_NORM_UPDATE)


def global_mean(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, 1, 1]."""
    return x.mean((2, 3), keepdim=True)


class GlobalMean(nn.Module):
    """[B, C, H, W] -> [B, C, 1, 1]."""

    forward = staticmethod(global_mean)


def upsample_to(x: Tensor, reference: Tensor) -> Tensor:
    """Upsamples x bilinearly to the height and width of the reference."""
    return F.interpolate(x, reference.shape[2:], mode="bilinear", align_corners=False)


class SqueezeExcite(nn.Module):
    """x * sigmoid(conv(relu(conv(mean of x)))), the convolutions with biases."""

    def __init__(self, channels: int, hidden_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden_channels, 1)
        self.conv2 = nn.Conv2d(hidden_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        return x * torch.sigmoid(self.conv2(F.relu(self.conv1(global_mean(x)))))


class DilatedConv(nn.Module):
    """Splits the channels evenly and convolves part i with dilation rate i."""

    def __init__(self, channels: int, dilation_rates: tuple[int, ...], stride: int, groups: int):
        super().__init__()
        branches = len(dilation_rates)
        self.part = channels // branches
        self.convs = nn.ModuleList(
            create_conv(self.part, self.part, 3, stride, rate, groups // branches)
            for rate in dilation_rates
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, ceil(H / stride), ceil(W / stride)]."""
        parts = x.split(self.part, dim=1)
        return torch.cat([conv(part) for conv, part in zip(self.convs, parts, strict=True)], 1)


class Shortcut(nn.Module):
    """[2x2 average pool] -> 1x1 convolution -> batch norm, parallel to a D block."""

    batch_norms = (("conv", "bn"),)

    def __init__(self, in_channels: int, out_channels: int, stride: int, use_pool: bool):
        super().__init__()
        self.use_pool = use_pool and stride == 2
        self.conv = create_conv(in_channels, out_channels, stride=1 if self.use_pool else stride)
        self.bn = create_batch_norm(out_channels)

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
        channels, rates, stride = block.out_channels, block.dilation_rates, block.stride
        groups = channels // group_width
        self.conv1 = create_conv(in_channels, channels)
        self.bn1 = create_batch_norm(channels)
        if len(rates) == 1:
            self.conv2 = create_conv(channels, channels, 3, stride, rates[0], groups)
        else:
            self.conv2 = DilatedConv(channels, rates, stride, groups)
        self.bn2 = create_batch_norm(channels)
        self.conv3 = create_conv(channels, channels)
        self.bn3 = create_batch_norm(channels)
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
