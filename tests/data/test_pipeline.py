import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from regseg_jax.data.classes import CAMVID, IGNORE_LABEL
from regseg_jax.data.pipeline import (
    EvalPlan,
    ProcessShard,
    create_eval_iterator,
    create_train_iterator,
)
from regseg_jax.data.sampling import ClassUniformEpochs, ShuffledEpochs
from regseg_jax.data.sources.source import FolderSource

ALONE = ProcessShard(index=0, count=1)
NUM_EXAMPLES = 11
BATCH_SIZE = 4  # does not divide the examples: 2 steps an epoch, the third is dropped


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> FolderSource:
    """Files on disk; every pixel of example i is i."""
    root: pathlib.Path = tmp_path_factory.mktemp("files")
    pairs = []
    for i in range(NUM_EXAMPLES):
        image, label = root / f"{i}.png", root / f"{i}_label.png"
        Image.fromarray(np.full((4, 6, 3), i, np.uint8)).save(image)
        Image.fromarray(np.full((4, 6), CAMVID.label_ids[i], np.uint8)).save(label)
        pairs.append((str(image), str(label)))
    return FolderSource(tuple(pairs), CAMVID, "ids")


def _train_batches(
    source: FolderSource,
    *,
    shard: ProcessShard = ALONE,
    start_step: int = 0,
    num_steps: int = 5,
    num_workers: int = 0,
) -> list[list[int]]:
    """The indices of the examples of each batch."""
    sampler = ShuffledEpochs(len(source), BATCH_SIZE, seed=5)
    batches = []
    with create_train_iterator(
        source,
        sampler,
        shard,
        start_step=start_step,
        num_steps=num_steps,
        num_workers=num_workers,
    ) as iterator:
        for batch in iterator:
            assert batch.keys() == {"image", "label"}
            size = BATCH_SIZE // shard.count
            assert batch["image"].shape == (size, 4, 6, 3)
            assert batch["label"].shape == (size, 4, 6)
            assert batch["image"].dtype == batch["label"].dtype == np.uint8
            np.testing.assert_array_equal(batch["image"][..., 0], batch["label"])
            batches.append(batch["label"][:, 0, 0].tolist())
    return batches


@pytest.fixture(scope="module")
def whole_run(source) -> list[list[int]]:
    return _train_batches(source)


def test_batches_follow_the_sampler(whole_run):
    sampler = ShuffledEpochs(NUM_EXAMPLES, BATCH_SIZE, seed=5)
    places = np.arange(5 * BATCH_SIZE).reshape(5, BATCH_SIZE).tolist()
    assert whole_run == [[sampler.draw(p).index for p in places[step]] for step in range(5)]


def test_worker_processes_make_the_same_batches(source, whole_run):
    assert _train_batches(source, num_workers=2) == whole_run


@pytest.mark.parametrize("start_step", [1, 2, 3, 5])
def test_a_restart_reads_what_the_whole_run_would_have(source, whole_run, start_step):
    assert _train_batches(source, start_step=start_step) == whole_run[start_step:]


def test_two_processes_share_each_global_batch(source, whole_run):
    shards = [_train_batches(source, shard=ProcessShard(i, 2)) for i in range(2)]
    assert [first + second for first, second in zip(*shards, strict=True)] == whole_run


def test_leaving_early_is_legal(source, whole_run):
    """Stopping in the middle ends the reading and leaves nothing that blocks."""
    sampler = ShuffledEpochs(len(source), BATCH_SIZE, seed=5)
    with create_train_iterator(
        source, sampler, ALONE, start_step=0, num_steps=10_000, num_workers=0
    ) as iterator:
        assert next(iterator)["label"][:, 0, 0].tolist() == whole_run[0]


def test_batch_that_does_not_divide_over_processes_is_named():
    assert ProcessShard(0, 4).local_batch_size(12) == 3
    with pytest.raises(ValueError, match="global_batch_size 10 does not divide over 4 processes"):
        ProcessShard(0, 4).local_batch_size(10)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_truncated_in_the_middle_of_an_epoch_is_named(source, tmp_path, num_workers):
    content = pathlib.Path(source.pairs[3][0]).read_bytes()
    bad = tmp_path / "bad.png"
    bad.write_bytes(content[: len(content) // 2])
    pairs = [
        (str(bad), label) if i == 3 else (image, label)
        for i, (image, label) in enumerate(source.pairs)
    ]
    with pytest.raises(ValueError, match=r"cannot read .*bad\.png") as e:
        _train_batches(FolderSource(tuple(pairs), CAMVID, "ids"), num_workers=num_workers)
    assert "\n" not in str(e.value)


SIZES = ((4, 6), (5, 3), (4, 6), (5, 4), (5, 3))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> FolderSource:
    """Images of three sizes; every pixel of example i is i."""
    root = tmp_path_factory.mktemp("mixed")
    pairs = []
    for i, size in enumerate(SIZES):
        image, label = root / f"{i}.png", root / f"{i}_label.png"
        Image.fromarray(np.full((*size, 3), i, np.uint8)).save(image)
        Image.fromarray(np.full(size, CAMVID.label_ids[i], np.uint8)).save(label)
        pairs.append((str(image), str(label)))
    return FolderSource(tuple(pairs), CAMVID, "ids", SIZES)


def test_training_images_of_differing_sizes_are_padded_and_know_their_size(mixed):
    sampler = ShuffledEpochs(5, 5, seed=0)
    with create_train_iterator(
        mixed, sampler, ALONE, start_step=0, num_steps=1, num_workers=0
    ) as iterator:
        batch = next(iterator)
    assert batch["image"].shape == (5, 5, 6, 3)
    for image, label, (height, width) in zip(
        *(batch[k] for k in ("image", "label", "size")), strict=True
    ):
        i = label[0, 0]
        assert (height, width) == SIZES[i]
        assert (label[:height, :width] == i).all()
        assert (image[:height, :width] == i).all()
        assert (label == i).sum() == height * width
        assert (label == IGNORE_LABEL).sum() == 30 - height * width


@pytest.mark.parametrize(("multiple", "padded"), [(1, SIZES), (4, ((4, 8), (8, 4)))])
@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_of_differing_sizes(mixed, multiple, padded, count):
    """Each image once, whole, in batches of one size; with multiple 1 without any padding."""
    plan = EvalPlan.create(mixed, 2, multiple)
    seen = []
    for index in range(count):
        shard = ProcessShard(index, count)
        with create_eval_iterator(mixed, plan, shard, num_workers=0) as iterator:
            batches = list(iterator)
        assert len(batches) == plan.num_batches
        for batch in batches:
            assert batch["label"].shape[1:] in padded
            for label, i in zip(batch["label"], batch["index"], strict=True):
                if i >= len(mixed):
                    assert (label == IGNORE_LABEL).all()
                else:
                    seen.append(int(i))
                    height, width = SIZES[i]
                    assert (label[:height, :width] == i).all()
                    assert (label != IGNORE_LABEL).sum() == height * width
                    assert multiple > 1 or label.shape == SIZES[i]
    assert sorted(seen) == list(range(len(mixed)))


def test_centroids_of_the_sampler_come_with_the_batch(source):
    centroids = (np.array([[2, 1, 3]], np.int32), np.array([[4, 0, 5], [5, 3, 0]], np.int32))
    sampler = ClassUniformEpochs(NUM_EXAMPLES, 4, seed=0, centroids=centroids)
    with create_train_iterator(
        source, sampler, ALONE, start_step=0, num_steps=2, num_workers=2
    ) as iterator:
        batches = list(iterator)
    expected = [sampler.draw(place) for place in range(8)]
    for name, values in (
        ("label", [d.index for d in expected]),
        ("centroid", [d.centroid for d in expected]),
    ):
        got = np.concatenate([batch[name] for batch in batches])
        np.testing.assert_array_equal(got[:, 0, 0] if name == "label" else got, values)


def _eval_batches(
    source: FolderSource, shard: ProcessShard, batch_size: int, num_workers: int = 0
) -> list[dict[str, np.ndarray]]:
    plan = EvalPlan.create(source, batch_size)
    with create_eval_iterator(source, plan, shard, num_workers=num_workers) as iterator:
        return list(iterator)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 11, 16])
@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_covers_each_example_once(source, batch_size, count):
    if batch_size % count:
        pytest.skip("does not divide over the processes")
    shards = [_eval_batches(source, ProcessShard(i, count), batch_size) for i in range(count)]
    assert {len(batches) for batches in shards} == {-(-NUM_EXAMPLES // batch_size)}
    batches = [batch for batches in shards for batch in batches]
    assert {batch["label"].shape for batch in batches} == {(batch_size // count, 4, 6)}
    labels = np.concatenate([batch["label"] for batch in batches])
    indices = np.concatenate([batch["index"] for batch in batches])
    assert indices.dtype == np.int32
    filler = indices >= NUM_EXAMPLES
    assert sorted(indices) == list(range(len(indices)))
    assert (labels[filler] == IGNORE_LABEL).all()
    for index, label in zip(indices[~filler], labels[~filler], strict=True):
        assert (label == index).all()


def test_evaluation_with_worker_processes(source):
    expected = _eval_batches(source, ALONE, 4)
    result = _eval_batches(source, ALONE, 4, num_workers=2)
    assert len(result) == len(expected) == 3
    for batch, other in zip(result, expected, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


LEAVE_A_BATCH_OPEN = """
import sys, time
from absl import flags
from grain.multiprocessing import SharedMemoryArray
from regseg_jax.data import pipeline
from regseg_jax.data.synthetic.scenes import SyntheticScenes

def free_slowly(shm, unlink, free=SharedMemoryArray.close_shm_async):
    time.sleep(0.2)  # as on a busy machine
    free(shm, unlink)

if __name__ == "__main__":
    flags.FLAGS(sys.argv[:1])
    SharedMemoryArray.close_shm_async = free_slowly
    source = SyntheticScenes(num_examples=24, height=32, width=48, seed=0)
    plan, alone = pipeline.EvalPlan.create(source, 4), pipeline.ProcessShard(0, 1)
    with pipeline.create_eval_iterator(source, plan, alone, num_workers=2) as batches:
        held = [next(batches), next(batches)]  # until Python ends, as a command may
    print(sum(len(batch["image"]) for batch in held))
"""


def test_a_command_that_ends_leaves_no_shared_memory_behind(tmp_path):
    (tmp_path / "command.py").write_text(LEAVE_A_BATCH_OPEN)
    result = subprocess.run(
        [sys.executable, tmp_path / "command.py"],
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "8\n", "")
