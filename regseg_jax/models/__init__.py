"""The models: `create_model("exp48_decoder26", num_classes=19)`."""

from regseg_jax.models.regseg import RegSeg, create_model

__all__ = ["RegSeg", "create_model"]
