"""Each decoder against the same one written with PyTorch's functions, by the author's names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from regseg_jax.models.decoders import create_decoder
from regseg_jax.models.variants import DECODERS
from regseg_jax.weights.names import to_torch

# Odd and even sizes; the bins of pyramid pooling overlap.
SHAPES = {"x4": (2, 15, 22, 5), "x8": (2, 8, 11, 6), "x16": (2, 4, 6, 7)}
NUM_CLASSES = 3


class TorchDecoder:
    """Layers by the names of a state dict, in float64."""

    def __init__(self, state_dict, train):
        self.tensors = {name: torch.tensor(array) for name, array in state_dict.items()}
        self.train = train

    def conv(self, x, name):
        weight = self.tensors[f"decoder.{name}.weight"]
        options = {"padding": weight.shape[-1] // 2, "groups": x.shape[1] // weight.shape[1]}
        return F.conv2d(x, weight, self.tensors.get(f"decoder.{name}.bias"), **options)

    def bn(self, x, name):
        names = ("running_mean", "running_var", "weight", "bias")
        values = (self.tensors[f"decoder.{name}.{leaf}"] for leaf in names)
        return F.batch_norm(x, *values, training=self.train, momentum=0.1, eps=1e-5)

    def conv_bn(self, x, name):
        return torch.relu(self.bn(self.conv(x, f"{name}.conv"), f"{name}.bn"))

    def squeeze_excite(self, x, name):
        scale = torch.relu(self.conv(_mean(x), f"{name}.conv1"))
        return x * torch.sigmoid(self.conv(scale, f"{name}.conv2"))

    def three_level(self, x4, x8, x16):
        x16, x8, x4 = (self.conv_bn(x, f"head{s}") for x, s in ((x16, 16), (x8, 8), (x4, 4)))
        x8 = self.conv_bn(x8 + _upsample(x16, x8), "conv8")
        x4 = self.conv_bn(torch.cat([_upsample(x8, x4), x4], 1), "conv4")
        return self.conv(x4, "classifier")

    def concatenated(self, x8, x16):
        x16, x8 = self.conv_bn(x16, "head16"), self.conv_bn(x8, "head8")
        return torch.cat([x8, _upsample(x16, x8)], 1)

    def summed(self, _, x8, x16):
        x16, x8 = self.conv_bn(x16, "head16"), self.conv_bn(x8, "head8")
        return self.conv(self.conv_bn(x8 + _upsample(x16, x8), "conv"), "classifier")

    def decoder4(self, _, x8, x16):
        return self.conv(self.conv_bn(self.concatenated(x8, x16), "conv"), "classifier")

    def decoder10(self, _, x8, x16):
        x = self.concatenated(x8, x16)
        y = torch.relu(self.bn(self.conv(x, "conv.conv1"), "conv.bn1"))
        y = torch.relu(self.bn(self.conv(y, "conv.conv2"), "conv.bn2"))
        y = self.squeeze_excite(y, "conv.se")
        y = self.bn(self.conv(y, "conv.conv3"), "conv.bn3")
        x = self.bn(self.conv(x, "conv.shortcut.conv"), "conv.shortcut.bn")
        return self.conv(torch.relu(x + y), "classifier")

    def lraspp(self, _, x8, x16):
        x = self.conv_bn(x16, "cbr") * torch.sigmoid(self.conv(_mean(x16), "scale.1"))
        return self.conv(x8, "low_classifier") + self.conv(_upsample(x, x8), "high_classifier")

    def bisenet(self, _, x8, x16):
        average = self.conv_bn(_mean(x16), "conv_avg")
        x = self.conv_bn(x16, "arm16.conv")
        x = x * torch.sigmoid(self.bn(self.conv(_mean(x), "arm16.scale.1"), "arm16.scale.2"))
        x = F.interpolate(x + average, x8.shape[-2:], mode="nearest")
        x = torch.cat([x8, self.conv_bn(x, "conv_head16")], 1)
        x = self.conv_bn(x, "ffm.conv")
        x = x + self.squeeze_excite(x, "ffm.se")
        return self.conv(self.conv_bn(x, "conv"), "classifier")

    def sfnet(self, _, x8, x16):
        levels = [x16]
        for i, bins in enumerate((1, 2, 3, 6)):
            name = f"head16.stages.{i}"
            pooled = F.adaptive_avg_pool2d(x16, bins)
            pooled = self.bn(self.conv(pooled, f"{name}.1.conv"), f"{name}.1.bn")
            levels.append(_upsample(pooled, x16))
        high = self.conv_bn(torch.cat(levels, 1), "head16.bottleneck")
        low = self.conv_bn(x8, "head8")

        down = _upsample(self.conv(high, "fpn_align.down_h"), low)
        down = torch.cat([down, self.conv(low, "fpn_align.down_l")], 1)
        flow = self.conv(down, "fpn_align.flow_make").permute(0, 2, 3, 1)
        height, width = low.shape[-2:]
        y, x = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in (height, width))
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        grid = grid + flow / torch.tensor([width, height])
        x = self.conv_bn(low + F.grid_sample(high, grid, align_corners=False), "conv")
        high = F.interpolate(high, (height, width), mode="bilinear", align_corners=True)
        x = self.conv_bn(torch.cat([x, high], 1), "conv_last.0")
        return self.conv(x, "conv_last.1")


REFERENCES = {
    "decoder4": TorchDecoder.decoder4,
    "decoder10": TorchDecoder.decoder10,
    "decoder12": TorchDecoder.summed,
    "decoder14": TorchDecoder.summed,
    "decoder26": TorchDecoder.three_level,
    "decoder29": TorchDecoder.three_level,
    "lraspp": TorchDecoder.lraspp,
    "BisenetDecoder": TorchDecoder.bisenet,
    "SFNetDecoder": TorchDecoder.sfnet,
}
# Channels into the classifier, at which stride the logits are.
WIDTHS = {"decoder26": (64, "x4"), "decoder29": (128, "x4"), "SFNetDecoder": (64, "x8")}


def _mean(x):
    return x.mean((2, 3), keepdim=True)


def _upsample(x, reference):
    return F.interpolate(x, reference.shape[-2:], mode="bilinear", align_corners=False)


def _variables(decoder, features):
    """Random values for a decoder's variables, variances positive."""
    init = jax.eval_shape(lambda: decoder.init(jax.random.key(0), features, train=False))
    rng = np.random.default_rng(0)

    def values(path, leaf):
        if path[-1].key == "var":
            return rng.uniform(0.5, 2, leaf.shape)
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) == 4 else 1
        return rng.standard_normal(leaf.shape) * fan_in**-0.5

    return jax.tree.map_with_path(values, init)


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_equals_torch(name):
    rng = np.random.default_rng(1)
    features = {key: rng.standard_normal(shape) for key, shape in SHAPES.items()}
    decoder = create_decoder(name, NUM_CLASSES, jnp.float64)

    @jax.jit
    def logits_of_both_modes(variables):
        in_training, _ = decoder.apply(variables, features, train=True, mutable=["batch_stats"])
        return {True: in_training, False: decoder.apply(variables, features, train=False)}

    with jax.enable_x64(True):
        variables = _variables(decoder, features)
        actual = logits_of_both_modes(variables)

    state_dict = to_torch({key: {"decoder": tree} for key, tree in variables.items()})
    inputs = [torch.tensor(x.transpose(0, 3, 1, 2)) for x in features.values()]
    for train, logits in actual.items():
        expected = REFERENCES[name](TorchDecoder(state_dict, train), *inputs)
        expected = expected.numpy().transpose(0, 2, 3, 1)
        assert expected.std() > 0.05  # neither saturated nor dead, so that all parts count
        np.testing.assert_allclose(logits, expected, rtol=1e-9, atol=1e-9, err_msg=f"{train=}")


@pytest.mark.parametrize("name", DECODERS)
def test_logits_are_at_the_finest_stride(name):
    features = {key: jax.ShapeDtypeStruct(s, jnp.bfloat16) for key, s in SHAPES.items()}
    decoder = create_decoder(name, NUM_CLASSES, jnp.bfloat16)
    logits, variables = jax.eval_shape(
        lambda features: decoder.init_with_output(jax.random.key(0), features, train=False),
        features,
    )
    width, finest = WIDTHS.get(name, (128, "x8"))
    assert logits.shape == (*SHAPES[finest][:3], NUM_CLASSES)
    assert logits.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    kernels = [leaf.shape for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 4]
    assert (1, 1, width, NUM_CLASSES) in kernels
