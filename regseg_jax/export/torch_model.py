"""RegSeg in PyTorch: for deployment, and to load and to write the author's weights.

Needs torch and no other package, so it runs on a machine without JAX. Names and order of the
state dicts are the author's; what is computed is the same as in `regseg_jax.models`, from the same
tables. No shape or branch depends on the values of a tensor, so models can be compiled, captured in
CUDA graphs, exported, and run in channels_last or autocast.
"""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from regseg_jax.export.torch_decoders import DECODERS, Channels, Features
from regseg_jax.export.torch_layers import ConvBN, DBlock, DilatedConv, upsample_to
from regseg_jax.models.variants import STEM_CHANNELS, Backbone, get_variant


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
          images: [B, 3, H, W], normalised by ImageNet's mean and standard deviation; any H and W.

        Returns:
          Logits [B, num_classes, H, W], of the weights' dtype (of autocast's, under it).
        """
        return upsample_to(self.decoder(self.body(self.stem(images))), images)


def create_torch_model(name: str, num_classes: int) -> RegSeg:
    """Builds a model by name, in training mode, with PyTorch's random initial weights.

    Args:
      name: see `variants.get_variant`.
      num_classes: at least 1.

    Raises:
      ValueError: if there is no such model or the class count is not positive.
    """
    variant = get_variant(name)
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; a model needs at least 1 class")
    return RegSeg(variant.backbone, DECODERS[variant.decoder], num_classes)


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


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Sets all parameters and buffers of the model, strictly.

    Raises:
      ValueError: counts what is missing, unexpected or of another shape and names ten of it;
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
            f"the state dict does not fit the model: {len(problems)} differences "
            f"({'; '.join(problems[:10])}{'; ...' if len(problems) > 10 else ''}). "
            "Load it into the variant and number of classes that it was trained as"
        )
    model.load_state_dict(state_dict)
