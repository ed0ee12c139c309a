"""Which example stands at which place of training: a pure function of (seed, place)."""

import dataclasses
import functools
from typing import NamedTuple, Protocol

import numpy as np


class Draw(NamedTuple):
    """What stands at a place.

    Attributes:
      index: of the example in the source.
      centroid: row and column of the pixel that the crop must hold, in the unscaled image;
        (-1, -1) for a crop anywhere, None from samplers that never give one.
    """

    index: int
    centroid: tuple[int, int] | None = None


class Sampler(Protocol):
    """An endless order of examples, cut into epochs of whole batches.

    Attributes:
      global_batch_size: examples in a step, over all processes.
      steps_per_epoch: whole batches in an epoch; the last partial one is dropped, as the author
        does, so a place's epoch is known without the history: restarts and processes need nothing
        but the step's number.
    """

    global_batch_size: int

    @property
    def steps_per_epoch(self) -> int:
        """See the class."""
        ...

    def draw(self, place: int) -> Draw:
        """What stands at step * global_batch_size + position."""
        ...


@dataclasses.dataclass(frozen=True)
class ShuffledEpochs:
    """Every epoch visits the examples once, in an order of its own; a `Sampler`.

    Attributes:
      num_examples: of the source.
      global_batch_size: examples in a step, over all processes.
      seed: of the orders.
    """

    num_examples: int
    global_batch_size: int
    seed: int

    def __post_init__(self) -> None:
        check_epoch_size(self.num_examples, self.global_batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return self.num_examples // self.global_batch_size

    def draw(self, place: int) -> Draw:
        """See `Sampler`."""
        epoch, offset = divmod(place, self.steps_per_epoch * self.global_batch_size)
        return Draw(int(_permutation(self.num_examples, self.seed, epoch)[offset]))


@functools.lru_cache(maxsize=4)
def _permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_examples)


@dataclasses.dataclass(frozen=True, eq=False)  # compared and hashed by identity, for the cache
class ClassUniformEpochs:
    """A part of every epoch has the same number of crops of each class; a `Sampler`.

    The author's rule (NVIDIA's class-uniform sampling): of N images, `int((1 - fraction) * N)` are
    drawn without replacement and cropped anywhere. For each class `int(fraction * N / num_classes)`
    of its centroids are drawn, each once before any comes twice. A class that no image shows is
    left out. The epoch is shuffled, and drawn again every time.

    Attributes:
      num_examples: of the source.
      global_batch_size: examples in a step, over all processes.
      seed: of the orders.
      centroids: for each class i32[n, 3], rows of (example, row, column), see `centroids.py`.
      class_uniform_fraction: fraction of the epoch that is drawn by class, in (0, 1].
    """

    num_examples: int
    global_batch_size: int
    seed: int
    centroids: tuple[np.ndarray, ...]
    class_uniform_fraction: float = 0.5

    def __post_init__(self) -> None:
        if not self.num_per_class:
            raise ValueError(
                f"class_uniform_share {self.class_uniform_fraction} of {self.num_examples} "
                f"examples is less than one crop for each of {len(self.centroids)} classes; make "
                "it larger, or 0"
            )
        check_epoch_size(self._epoch_size, self.global_batch_size)

    @property
    def num_per_class(self) -> int:
        """Crops around centroids of each class in an epoch."""
        return int(self.num_examples * self.class_uniform_fraction / len(self.centroids))

    @property
    def _num_anywhere(self) -> int:
        return int(self.num_examples * (1 - self.class_uniform_fraction))

    @property
    def _epoch_size(self) -> int:
        num_present = sum(len(rows) > 0 for rows in self.centroids)
        return self._num_anywhere + num_present * self.num_per_class

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return self._epoch_size // self.global_batch_size

    def draw(self, place: int) -> Draw:
        """See `Sampler`."""
        epoch, offset = divmod(place, self.steps_per_epoch * self.global_batch_size)
        index, row, column = self._order(epoch)[offset].tolist()
        return Draw(index, (row, column))

    @functools.lru_cache(maxsize=4)  # noqa: B019  the few samplers of a run may stay
    def _order(self, epoch: int) -> np.ndarray:
        """i32[epoch size, 3], rows of (example, row, column)."""
        rng = np.random.default_rng((self.seed, epoch))
        anywhere = np.full((self._num_anywhere, 3), -1, np.int32)
        anywhere[:, 0] = rng.permutation(self.num_examples)[: self._num_anywhere]
        around = [
            rows[np.resize(rng.permutation(len(rows)), self.num_per_class)]
            for rows in self.centroids
            if len(rows)
        ]
        return rng.permutation(np.concatenate([anywhere, *around]))


def check_epoch_size(epoch_size: int, global_batch_size: int) -> None:
    """Raises ValueError if an epoch is smaller than a batch."""
    if epoch_size < global_batch_size:
        raise ValueError(
            f"an epoch of the training split has {epoch_size} examples, fewer than "
            f"global_batch_size {global_batch_size}; make the batch smaller"
        )
