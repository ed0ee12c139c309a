"""A run of random weights and a small backbone, made by import, so that it is there in seconds."""

import contextlib
import pathlib
from collections.abc import Iterator

import pytest
import torch

from regseg_jax.export import torch_model
from regseg_jax.import_torch import import_torch
from regseg_jax.models import variants

NAME = "small_decoder26"
NUM_CLASSES = 11
Stages = tuple[tuple[str, tuple[tuple[int, tuple[int, ...], int], ...]], ...]
# Blocks of (channels, dilation rates, stride).
_STAGES = (
    ("stage4", ((16, (1,), 2),)),
    ("stage8", ((32, (1,), 2),)),
    ("stage16", ((32, (1, 2), 2),)),
)


@contextlib.contextmanager
def small_backbone(name: str = "small", stages: Stages = _STAGES) -> Iterator[None]:
    """Puts a backbone, of three blocks unless told otherwise, into the table.

    PyTorch has one thread meanwhile: two spin, and are slower by far on a busy machine.
    """

    rows = tuple(
        (stage, tuple(variants.Block(*block) for block in blocks)) for stage, blocks in stages
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(variants.BACKBONES, name, variants.Backbone(rows))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


def create_weights(num_classes: int = NUM_CLASSES, name: str = NAME) -> dict[str, torch.Tensor]:
    """Random weights, batch norms that are not identities, and a count of 5 batches."""
    generator = torch.Generator().manual_seed(0)
    weights = torch_model.create_torch_model(name, num_classes).state_dict()
    for key, tensor in weights.items():
        if key.endswith("num_batches_tracked"):
            tensor.fill_(5)
        elif key.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=generator)
        elif tensor.ndim == 4:
            bound = (3 / tensor[0].numel()) ** 0.5
            tensor.uniform_(-bound, bound, generator=generator)
        else:
            tensor.normal_(float(key.endswith(".weight")), 0.2, generator=generator)
    return dict(weights)


def create_run(folder: pathlib.Path) -> pathlib.Path:
    """Writes weights.pth and the run `run` into folder; returns the run."""
    torch.save(create_weights(), folder / "weights.pth")
    import_torch(folder / "weights.pth", NAME, NUM_CLASSES, folder / "run")
    return folder / "run"
