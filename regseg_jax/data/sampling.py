"""Which example stands at which place of training: a pure function of (seed, place)."""

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True)
class ShuffledEpochs:
    """Every epoch visits the examples once, in an order of its own.

    The last partial batch of an epoch is dropped, as the author does, so a place's epoch is known
    without the history: restarts and processes need nothing but the step's number.

    Attributes:
      num_examples: of the source.
      global_batch_size: examples in a step, over all processes.
      seed: of the orders.
    """

    num_examples: int
    global_batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_examples < self.global_batch_size:
            raise ValueError(
                f"the training split has {self.num_examples} examples, fewer than "
                f"global_batch_size {self.global_batch_size}; make the batch smaller"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return self.num_examples // self.global_batch_size

    def example_index(self, place: int) -> int:
        """The index in the source of the example at step * global_batch_size + position."""
        epoch, offset = divmod(place, self.steps_per_epoch * self.global_batch_size)
        return int(_permutation(self.num_examples, self.seed, epoch)[offset])


@functools.lru_cache(maxsize=4)
def _permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_examples)
