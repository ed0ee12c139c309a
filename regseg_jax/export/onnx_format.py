"""ONNX files, written from the PyTorch model."""

import io
import json
import warnings
from collections.abc import Mapping
from typing import Any

import onnx
import torch

from regseg_jax.export.torch_model import RegSeg, fuse_batch_norm

_OPSET = 17  # has every operation of the models (SFNet's GridSample came with 16)
_EXAMPLE_SIZE = (64, 96)  # what a model of any size is traced with


class _ClassMap(torch.nn.Module):
    """The most likely class of each pixel: uint8[B, H, W]."""

    def __init__(self, model: RegSeg):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images).argmax(1).to(torch.uint8)


def serialize(
    model: RegSeg,
    metadata: Mapping[str, Any],
    size: tuple[int, int] | None = None,
    *,
    class_map: bool = False,
) -> bytes:
    """An ONNX model of one input, `images`, and one output, `logits` or `class_map`.

    Args:
      model: left as it is; its copy is exported in evaluation mode, with batch norms folded.
      metadata: plain data for `metadata_props`; strings as they are, the rest as JSON.
      size: the images' height and width: the input is then f32[1, 3, height, width]. None leaves
        batch and size open: f32[batch, 3, height, width], any height and width.
      class_map: whether the output is uint8[batch, height, width] in place of logits
        f32[batch, classes, height, width].
    """
    # The exporter folds a batch norm behind one convolution, but not behind several branches.
    model = fuse_batch_norm(model)
    output = "class_map" if class_map else "logits"
    height_axis = 1 if class_map else 2
    dynamic_axes = {
        "images": {0: "batch", 2: "height", 3: "width"},
        output: {0: "batch", height_axis: "height", height_axis + 1: "width"},
    }
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The exporter is PyTorch's older one, which says so: the newer needs onnxscript.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            _ClassMap(model).eval() if class_map else model,
            (torch.zeros(1, 3, *(size or _EXAMPLE_SIZE)),),
            buffer,
            input_names=["images"],
            output_names=[output],
            dynamic_axes=None if size else dynamic_axes,
            opset_version=_OPSET,
            dynamo=False,
        )
    proto = onnx.load_from_string(buffer.getvalue())
    onnx.helper.set_model_props(
        proto, {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()
