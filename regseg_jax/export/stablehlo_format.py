"""StableHLO files: a zip of `jax.export`'s bytes and of the metadata as JSON.

To run one, JAX is enough:

    with zipfile.ZipFile("regseg.zip") as file:
        exported = jax.export.deserialize(bytearray(file.read("model.bin")))
        metadata = json.loads(file.read("metadata.json"))
    images = (pixels / 255 - np.array(metadata["mean"])) / np.array(metadata["std"])
    logits = exported.call(images.astype(np.float32))  # [B, H, W, 3] -> [B, H, W, classes]
"""

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from regseg_jax.models.folding import fold_batch_norm
from regseg_jax.models.regseg import RegSeg
from regseg_jax.models.variants import Variant
from regseg_jax.ops.upsampled_loss import upsampled_argmax

PLATFORMS = ("cpu", "cuda", "tpu")

# Every stride divides it, so that no rounding depends on the size. The decoders that need more
# than the size's quotients (pooling into bins whose edges are rounded) take fixed sizes only.
_SIZE_STEP = 32
_FIXED_SIZE_DECODERS = ("SFNetDecoder",)


def serialize(
    model: RegSeg,
    variables: Mapping[str, Any],
    metadata: Mapping[str, Any],
    size: tuple[int, int] | None = None,
    *,
    class_map: bool = False,
) -> bytes:
    """A zip with `model.bin`, for `jax.export.deserialize`, and `metadata.json`.

    Args:
      model: computes in its own dtype.
      variables: {"params", "batch_stats"}; folded, they become constants of the computation.
      metadata: what JSON can hold.
      size: the images' height and width, any. None leaves them open: multiples of 32, from
        `minimum_size` on. The batch is open in either case.
      class_map: whether the output is uint8[B, H, W] in place of logits f32[B, H, W, classes].

    Raises:
      ValueError: if the model needs a fixed size.
    """
    variables = jax.tree.map(np.asarray, fold_batch_norm(dict(variables), model.dtype))

    def predict(images: jax.Array) -> jax.Array:
        logits = model.clone(upsample=not class_map).apply(variables, images, train=False)
        return upsampled_argmax(logits, images.shape[1:3]) if class_map else logits

    images = jax.ShapeDtypeStruct(_image_shape(model.variant, size), jnp.float32)
    exported = export.export(jax.jit(predict), platforms=PLATFORMS)(images)
    described = {"input": str(exported.in_avals[0]), "output": str(exported.out_avals[0])}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("model.bin", exported.serialize())
        file.writestr("metadata.json", json.dumps({**metadata, **described}, indent=1))
    return buffer.getvalue()


def minimum_size(variant: Variant) -> int:
    """The smallest height and width of a file of open size.

    From here on the widest dilation rate reaches a pixel inside the feature map at stride 16.
    """
    rates = [
        rate
        for _, blocks in variant.backbone.stages
        for block in blocks
        for rate in block.dilation_rates
    ]
    return _SIZE_STEP * (max(rates) * 16 // _SIZE_STEP + 1)


def _image_shape(variant: Variant, size: tuple[int, int] | None) -> tuple:
    if size is not None:
        return export.symbolic_shape(f"b, {size[0]}, {size[1]}, 3")
    if variant.decoder in _FIXED_SIZE_DECODERS:
        raise ValueError(
            f"{variant.name} cannot be exported to stablehlo for images of any size, for "
            f"{variant.decoder} pools into bins; add --size=HEIGHT,WIDTH"
        )
    smallest = minimum_size(variant) // _SIZE_STEP
    return export.symbolic_shape(
        f"b, {_SIZE_STEP}*h, {_SIZE_STEP}*w, 3",
        constraints=[f"h >= {smallest}", f"w >= {smallest}"],
    )
