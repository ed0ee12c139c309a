"""Host-side input: Grain reads, decodes in worker processes, batches and prefetches.

Batches are dicts of numpy arrays, this process's share of the global batch. Augmentation is not
done here but on the device (`augment.py`).
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator

import grain
import numpy as np

from regseg_jax.data.classes import IGNORE_LABEL
from regseg_jax.data.sampling import ShuffledEpochs
from regseg_jax.data.sources import Source

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ProcessShare:
    """Which part of each global batch a process reads: `index` of `count` processes."""

    index: int
    count: int

    def local_batch_size(self, global_batch_size: int) -> int:
        """Examples of a global batch that one process reads.

        Raises:
          ValueError: if the batch does not divide over the processes.
        """
        if global_batch_size % self.count:
            raise ValueError(
                f"global_batch_size {global_batch_size} does not divide over {self.count} "
                f"processes; make it a multiple of {self.count}"
            )
        return global_batch_size // self.count


@dataclasses.dataclass(frozen=True)
class _LoadTrainExample:
    """Maps a process's n-th example to the decoded example; picklable for worker processes."""

    source: Source
    sampler: ShuffledEpochs
    share: ProcessShare

    def __call__(self, n: int) -> Batch:
        local_batch_size = self.share.local_batch_size(self.sampler.global_batch_size)
        step, position = divmod(n, local_batch_size)
        place = (
            step * self.sampler.global_batch_size + self.share.index * local_batch_size + position
        )
        example = self.source[self.sampler.example_index(place)]
        return {"image": example["image"], "label": example["label"]}


def create_train_iterator(
    source: Source,
    sampler: ShuffledEpochs,
    share: ProcessShare,
    *,
    start_step: int,
    num_steps: int,
    num_workers: int,
) -> contextlib.AbstractContextManager[Iterator[Batch]]:
    """Iterates over the batches of steps start_step to num_steps - 1.

    The input's position is the step's number: a restart begins at its step and reads what an
    uninterrupted run would have read, whatever the number of workers.

    Args:
      source: examples of one size.
      sampler: the order.
      share: this process's part of each batch.
      start_step: the first step.
      num_steps: of the whole run.
      num_workers: processes that decode; 0 decodes in threads of this one.

    Returns:
      A context manager, which ends the workers, of an iterator over
      {"image": uint8[b, H, W, 3], "label": uint8[b, H, W]}, b the process's batch size.
    """
    local = share.local_batch_size(sampler.global_batch_size)
    dataset = (
        grain.MapDataset.range(start_step * local, num_steps * local)
        .map(_LoadTrainExample(source, sampler, share))
        .batch(local)
    )
    return _iterate(dataset, num_workers)


@dataclasses.dataclass(frozen=True)
class _LoadEvalExample:
    """Maps n to the n-th example, or past the end to one whose pixels are all ignored."""

    source: Source
    share: ProcessShare

    def __call__(self, n: int) -> Batch:
        index = n * self.share.count + self.share.index
        example = self.source[min(index, len(self.source) - 1)]
        label = example["label"]
        if index >= len(self.source):
            label = np.full_like(label, IGNORE_LABEL)
        return {"image": example["image"], "label": label, "index": np.int32(index)}


def create_eval_iterator(
    source: Source, share: ProcessShare, *, global_batch_size: int, num_workers: int
) -> contextlib.AbstractContextManager[Iterator[Batch]]:
    """Iterates over a whole split once, each example exactly once over all processes.

    The last batch is filled up with examples whose labels are all ignored, so that every process
    has the same number of batches of the same size and none of it shows in the metrics.

    Returns:
      A context manager of an iterator over {"image", "label"} as `create_train_iterator`
      makes them, and "index": int32[b], the example's index,
      at least len(source) for a filler.
    """
    local = share.local_batch_size(global_batch_size)
    num_batches = math.ceil(len(source) / global_batch_size)
    dataset = (
        grain.MapDataset.range(num_batches * local)
        .map(_LoadEvalExample(source, share))
        .batch(local)
    )
    return _iterate(dataset, num_workers)


@contextlib.contextmanager
def _iterate(dataset: grain.MapDataset, num_workers: int) -> Iterator[Iterator[Batch]]:
    """Two batches ahead a worker: enough for the device never to wait where it can keep up."""
    if num_workers == 0:
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        iterator = iter(dataset.to_iter_dataset(options))
    else:
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        workers = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
        iterator = iter(dataset.to_iter_dataset(options).mp_prefetch(workers))
    try:
        yield iterator
    finally:
        iterator.close()  # ends the worker processes and frees their shared memory
