"""RegSeg: stem, backbone, decoder, and logits at the image's or the decoder's size."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from regseg_jax.models import variants
from regseg_jax.models.backbones import BackboneStages
from regseg_jax.models.blocks import DilatedConv
from regseg_jax.models.decoders import create_decoder
from regseg_jax.models.layers import ConvBN
from regseg_jax.ops.resize import upsample_bilinear


class RegSeg(nn.Module):
    """A segmentation network of any variant.

    Attributes:
      variant: backbone and decoder.
      num_classes: the logits' last axis.
      dilated_conv: builds the 3x3 convolution of each D block, see `blocks.DBlock`.
      dtype: of the computation; parameters and batch statistics are float32.
      axis_name: the mapped axis over which a batch is sharded inside `jax.shard_map`; batch norm's
        training statistics run over it too. None outside.
      upsample: whether the logits are at the image's size; if not, at the decoder's, a fourth or
        an eighth, for `ops.upsampled_loss`.
    """

    variant: variants.Variant
    num_classes: int
    dilated_conv: Callable[..., nn.Module] = DilatedConv
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    upsample: bool = True

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        """Computes the logits of each pixel.

        Args:
          images: [B, H, W, 3], normalised by ImageNet's mean and standard deviation; any H and W.
          train: whether batch norm uses and updates the batch's statistics (then
            `mutable=["batch_stats"]` is needed).

        Returns:
          Logits [B, H, W, num_classes], float32 (float64 where dtype is); without `upsample`
          [B, h, w, num_classes] of the dtype.
        """
        x = images.astype(self.dtype)
        x = ConvBN(
            variants.STEM_CHANNELS, 3, 2, dtype=self.dtype, axis_name=self.axis_name, name="stem"
        )(x, train=train)
        features = BackboneStages(
            self.variant.backbone, self.dilated_conv, self.dtype, self.axis_name, name="backbone"
        )(x, train=train)
        decoder = create_decoder(self.variant.decoder, self.num_classes, self.dtype, self.axis_name)
        logits = decoder(features, train=train)
        if not self.upsample:
            return logits
        logits = logits.astype(jnp.promote_types(self.dtype, jnp.float32))
        return upsample_bilinear(logits, images.shape[1:3])


def create_model(name: str, num_classes: int, dtype: DTypeLike = jnp.float32) -> RegSeg:
    """Builds a model by name, such as `exp48_decoder26`; see `variants.get_variant`.

    Args:
      name: BACKBONE_DECODER, an alias, or the path of a variant file.
      num_classes: at least 1.
      dtype: of the computation: float32, bfloat16, float16 or (with `jax_enable_x64`) float64.

    Raises:
      ValueError: if there is no such model or the class count is not positive.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; a model needs at least 1 class")
    return RegSeg(variants.get_variant(name), num_classes, dtype=dtype)
