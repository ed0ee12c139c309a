"""Times the host's work for an image of training: here, from the cache, and as the author does it.

python -m regseg_jax.benchmark.input --config=configs/cityscapes.py --config.data.data_dir=DATA

The author's way does all of augmentation on the host, in Pillow: decode, resize, crop, flip,
RandAugment, pad, and normalise in float32. Here the host only decodes, from the files or from a
packed folder, or reads what was decoded once. All are timed in one thread of one process, in
seconds of CPU time, so that a busy machine does not change the figures: images per CPU second are
images per second and core. From them follow the cores that feed accelerators whose training step
takes --step_ms. Then the whole pipeline is timed, in seconds on the clock, at each number of
--workers.
"""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from regseg_jax.benchmark.core import run_benchmark
from regseg_jax.benchmark.pillow_augment import load_with_pillow
from regseg_jax.config import parse_config
from regseg_jax.data.augment import AugmentConfig
from regseg_jax.data.cache import load_cached
from regseg_jax.data.pack import pack_sources
from regseg_jax.data.pipeline import ProcessShard, create_train_iterator
from regseg_jax.data.sampling import ShuffledEpochs
from regseg_jax.data.sources.packed import load_packed
from regseg_jax.data.sources.source import FolderSource, Source
from regseg_jax.reports.tables import format_table
from regseg_jax.runs.parts import create_dataset

_ACCELERATORS = (1, 4, 8)


def measure_cpu_rate(work: Callable[[int], object], count: int, description: str) -> float:
    """Calls of `work(i)` a second of CPU time, after one that is not counted."""
    work(0)
    start = time.process_time()
    for i in tqdm(range(count), description, unit="image", leave=False, disable=None):
        work(i)
    return count / (time.process_time() - start)


def compare_ways(source: FolderSource, config: AugmentConfig, num_images: int) -> dict[str, float]:
    """Images a CPU second by each way; cache and packed folder are made in a temporary folder."""
    rng = np.random.default_rng(0)
    subset = source.select(range(min(num_images, len(source))))
    with tempfile.TemporaryDirectory() as folder:
        cached = load_cached(folder, "benchmark", subset)
        pack_sources({"train": subset}, "folder", f"{folder}/packed", shard_bytes=2**28)
        packed = load_packed(f"{folder}/packed", "train", subset.class_table, "folder")
        ways = {
            "the author's way, in Pillow": lambda i: load_with_pillow(subset.pairs[i], config, rng),
            "decoding alone, as here": subset.__getitem__,
            "decoding packed files": packed.__getitem__,
            "from the cache, as here": cached.__getitem__,
        }
        return {
            name: measure_cpu_rate(lambda i, work=work: work(i % len(subset)), num_images, name)
            for name, work in ways.items()
        }


def count_cores(rate: float, images_per_step: int, step_ms: float) -> list[int]:
    """The cores that feed each number of `_ACCELERATORS`.

    Args:
      rate: images per second of one core.
      images_per_step: of one accelerator.
      step_ms: milliseconds of a training step.
    """
    wanted = 1e3 * images_per_step / step_ms  # images per second and accelerator
    return [math.ceil(accelerators * wanted / rate) for accelerators in _ACCELERATORS]


def measure_pipeline(source: Source, batch_size: int, num_workers: int, num_images: int) -> float:
    """Images per second that the training input yields, without the first batch."""
    num_batches = 1 + math.ceil(num_images / batch_size)
    with create_train_iterator(
        source,
        ShuffledEpochs(len(source), batch_size, seed=0),
        ProcessShard(0, 1),
        start_step=0,
        num_steps=num_batches,
        num_workers=num_workers,
    ) as batches:
        next(batches)
        start = time.perf_counter()
        for _ in range(num_batches - 1):
            next(batches)
        return (num_batches - 1) * batch_size / (time.perf_counter() - start)


def parse_workers(texts: Sequence[str]) -> list[int]:
    """Reads --workers.

    Raises:
      ValueError: if one is not an integer of at least 0.
    """
    if not all(text.isdecimal() for text in texts):
        raise ValueError(f"--workers is {','.join(texts)}; give whole numbers, as 0,1,2")
    return [int(text) for text in texts]


def measure(values: flags.FlagValues) -> dict[str, Any]:
    """Prints the tables of what the flags name."""
    config, workers = parse_config(values.config), parse_workers(values.workers)
    source = create_dataset(config).create_source(config.data.train_split)
    if not isinstance(source, FolderSource):
        raise ValueError(
            f"config.data.source is {config.data.source!r}, which is not a folder of image "
            "files; use camvid, cityscapes or folder, unpacked"
        )
    rates = compare_ways(source, config.augment, values.num_images)
    images_per_step = values.images_per_step or config.global_batch_size
    base, rows, cores = next(iter(rates.values())), [], {}
    for name, rate in rates.items():
        cores[name] = count_cores(rate, images_per_step, values.step_ms)
        times = (f"{rate:.1f}", f"{1000 / rate:.1f}", f"{rate / base:.1f}")
        rows.append((name, *times, *cores[name]))
    needs = (f"cores for {accelerators}" for accelerators in _ACCELERATORS)
    print(format_table(("", "images/s and core", "ms an image", "times", *needs), rows))
    print(f"accelerators of {images_per_step} images in {values.step_ms:g} ms each")
    batch_size = min(config.global_batch_size, len(source))
    pipeline = {
        number: measure_pipeline(source, batch_size, number, values.num_images)
        for number in workers
    }
    table = [(number, f"{rate:.1f}") for number, rate in pipeline.items()]
    print("\n" + format_table(("workers", "images/s on the clock"), table))
    return {
        "images_per_cpu_second": rates,
        "images_per_step": images_per_step,
        "step_ms": values.step_ms,
        "accelerators": _ACCELERATORS,
        "cores": cores,
        "images_per_second_by_workers": pipeline,
    }


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The recipe, a file of configs/.")
    flags.DEFINE_integer("num_images", 40, "Images that each way is timed on.", lower_bound=1)
    flags.DEFINE_list("workers", ["0", "1", "2"], "Worker processes, with commas between.")
    flags.DEFINE_float("step_ms", 100, "A training step of one accelerator.", lower_bound=0.1)
    flags.DEFINE_integer(
        "images_per_step", None, "Of one accelerator; else the config's batch.", lower_bound=1
    )
    flags.mark_flags_as_required(["config"])
    run_benchmark(measure, "regseg_jax.benchmark.input")
