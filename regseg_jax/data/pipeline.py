"""Host-side input: Grain reads, decodes in worker processes, batches and prefetches.

Batches are dicts of numpy arrays, this process's part of the global batch. Augmentation is not
done here but on the device (`augment.py`).
"""

import collections
import contextlib
import dataclasses
import gc
from collections.abc import Iterator

import grain
import numpy as np
from grain.multiprocessing import SharedMemoryArray

from regseg_jax.data.classes import IGNORE_LABEL
from regseg_jax.data.sampling import Sampler
from regseg_jax.data.sources.source import Source

Batch = dict[str, np.ndarray]

# What images of evaluation are padded with: ImageNet's mean colour, 0 after normalisation.
_MEAN_COLOR = (124, 116, 104)


@dataclasses.dataclass(frozen=True)
class ProcessShard:
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
    sampler: Sampler
    shard: ProcessShard

    def __call__(self, n: int) -> Batch:
        local_batch_size = self.shard.local_batch_size(self.sampler.global_batch_size)
        step, position = divmod(n, local_batch_size)
        place = (
            step * self.sampler.global_batch_size + self.shard.index * local_batch_size + position
        )
        draw = self.sampler.draw(place)
        example = self.source[draw.index]
        image, label, placing = example["image"], example["label"], {}
        if self.source.image_sizes is not None:
            placing["size"] = np.array(label.shape, np.int32)
            image, label = _pad(image, label, tuple(np.max(self.source.image_sizes, axis=0)))
        if draw.centroid is not None:
            placing["centroid"] = np.array(draw.centroid, np.int32)
        return {"image": image, "label": label, **placing}


def _pad(
    image: np.ndarray, label: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Pads below and to the right with the mean colour and `IGNORE_LABEL`."""
    height, width = label.shape
    if (height, width) == tuple(size):
        return image, label
    padded_image, padded_label = np.empty((*size, 3), np.uint8), np.empty(size, np.uint8)
    padded_image[:], padded_label[:] = _MEAN_COLOR, IGNORE_LABEL
    padded_image[:height, :width], padded_label[:height, :width] = image, label
    return padded_image, padded_label


def create_train_iterator(
    source: Source,
    sampler: Sampler,
    shard: ProcessShard,
    *,
    start_step: int,
    num_steps: int,
    num_workers: int,
) -> contextlib.AbstractContextManager[Iterator[Batch]]:
    """Iterates over the batches of steps start_step to num_steps - 1.

    The input's position is the step's number: a restart begins at its step and reads what an
    uninterrupted run would have read, whatever the number of workers.

    Args:
      source: images whose sizes differ are padded to the largest height and width of the split.
      sampler: the order.
      shard: this process's part of each batch.
      start_step: the first step.
      num_steps: of the whole run.
      num_workers: processes that decode; 0 decodes in threads of this one.

    Returns:
      A context manager, which ends the workers, of an iterator over
      {"image": uint8[b, H, W, 3], "label": uint8[b, H, W]}, b the process's batch size, with
      "size": i32[b, 2], the true height and width, where sizes differ, and "centroid": i32[b, 2],
      see `Draw`, where the sampler gives it.
    """
    local = shard.local_batch_size(sampler.global_batch_size)
    dataset = (
        grain.MapDataset.range(start_step * local, num_steps * local)
        .map(_LoadTrainExample(source, sampler, shard))
        .batch(local)
    )
    return _iterate(dataset, num_workers)


@dataclasses.dataclass(frozen=True)
class EvalPlan:
    """Which example stands where in an evaluation, and the size that it is padded to.

    Batches hold images of one size. Where sizes differ, every image keeps its own
    (`size_multiple` 1), so that it is scored exactly as `predict` sees it, and each size of the
    split compiles once; a larger multiple pads to fewer sizes, which compile sooner.

    Attributes:
      entries: (example, index, size) for each place; a filler's index is at least the number of
        examples, its label all ignored. The size is None if all images are of one.
      global_batch_size: over all processes.
    """

    entries: tuple[tuple[int, int, tuple[int, int] | None], ...]
    global_batch_size: int

    @classmethod
    def create(cls, source: Source, global_batch_size: int, size_multiple: int = 1) -> "EvalPlan":
        """Plans a whole split: each example once, and fillers where a batch is not full."""
        groups = collections.defaultdict(list)
        for i in range(len(source)):
            size = None
            if source.image_sizes is not None:
                size = tuple(
                    -(-side // size_multiple) * size_multiple for side in source.image_sizes[i]
                )
            groups[size].append(i)
        entries, num_fillers = [], 0
        for size, examples in groups.items():
            entries += [(i, i, size) for i in examples]
            for _ in range(-len(examples) % global_batch_size):
                entries.append((examples[-1], len(source) + num_fillers, size))
                num_fillers += 1
        return cls(tuple(entries), global_batch_size)

    @property
    def num_batches(self) -> int:
        """Batches in the evaluation."""
        return len(self.entries) // self.global_batch_size


@dataclasses.dataclass(frozen=True)
class _LoadEvalExample:
    """Maps a process's n-th place of the plan to its example."""

    source: Source
    plan: EvalPlan
    shard: ProcessShard

    def __call__(self, n: int) -> Batch:
        example_index, index, size = self.plan.entries[n * self.shard.count + self.shard.index]
        example = self.source[example_index]
        image, label = example["image"], example["label"]
        if index >= len(self.source):
            label = np.full_like(label, IGNORE_LABEL)
        if size is not None:
            image, label = _pad(image, label, size)
        return {"image": image, "label": label, "index": np.int32(index)}


def create_eval_iterator(
    source: Source, plan: EvalPlan, shard: ProcessShard, *, num_workers: int
) -> contextlib.AbstractContextManager[Iterator[Batch]]:
    """Iterates over a whole split once, each example exactly once over all processes.

    Batches are filled up with examples whose labels are all ignored, so that every process
    has the same number of batches of the same sizes and none of it shows in the metrics.

    Returns:
      A context manager of an iterator over {"image", "label"} as `create_train_iterator`
      makes them, and "index": int32[b], the example's index,
      at least len(source) for a filler.
    """
    local = shard.local_batch_size(plan.global_batch_size)
    dataset = (
        grain.MapDataset.range(plan.num_batches * local)
        .map(_LoadEvalExample(source, plan, shard))
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
    batches = _copy_batches(iterator)
    try:
        yield batches
    finally:
        batches.close()
        iterator.close()  # ends the worker processes
        del iterator
        if num_workers:
            gc.collect()  # Grain's iterators are in reference cycles, and hold shared memory
            _wait_for_freed_memory()


def _copy_batches(iterator: Iterator[Batch]) -> Iterator[Batch]:
    """The batches in memory of their own.

    Grain hands out arrays in shared memory, freed when the array is. One that a command still
    holds when it ends is never freed, and Python warns of leaked shared memory.
    """
    for batch in iterator:
        yield {name: np.array(array) for name, array in batch.items()}


def _wait_for_freed_memory() -> None:
    """Waits until Grain has freed the shared memory of the arrays that are gone.

    Grain frees it in one thread, in order, which Python's end would cut off.
    """
    if SharedMemoryArray._del_thread_pool is not None:
        SharedMemoryArray._del_thread_pool.apply(int)
