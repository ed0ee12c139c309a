import pathlib

import numpy as np
import pytest
from PIL import Image

from regseg_jax.data.classes import CAMVID, IGNORE_LABEL
from regseg_jax.data.pipeline import ProcessShare, create_eval_iterator, create_train_iterator
from regseg_jax.data.sampling import ShuffledEpochs
from regseg_jax.data.sources import FolderSource

ALONE = ProcessShare(index=0, count=1)
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
    share: ProcessShare = ALONE,
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
        share,
        start_step=start_step,
        num_steps=num_steps,
        num_workers=num_workers,
    ) as iterator:
        for batch in iterator:
            assert batch.keys() == {"image", "label"}
            size = BATCH_SIZE // share.count
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
    assert whole_run == [[sampler.example_index(p) for p in places[step]] for step in range(5)]


def test_worker_processes_make_the_same_batches(source, whole_run):
    assert _train_batches(source, num_workers=2) == whole_run


@pytest.mark.parametrize("start_step", [1, 2, 3, 5])
def test_a_restart_reads_what_the_whole_run_would_have(source, whole_run, start_step):
    assert _train_batches(source, start_step=start_step) == whole_run[start_step:]


def test_two_processes_share_each_global_batch(source, whole_run):
    shares = [_train_batches(source, share=ProcessShare(i, 2)) for i in range(2)]
    assert [first + second for first, second in zip(*shares, strict=True)] == whole_run


def test_leaving_early_is_legal(source, whole_run):
    """Stopping in the middle ends the reading and leaves nothing that blocks."""
    sampler = ShuffledEpochs(len(source), BATCH_SIZE, seed=5)
    with create_train_iterator(
        source, sampler, ALONE, start_step=0, num_steps=10_000, num_workers=0
    ) as iterator:
        assert next(iterator)["label"][:, 0, 0].tolist() == whole_run[0]


def test_batch_that_does_not_divide_over_processes_is_named():
    assert ProcessShare(0, 4).local_batch_size(12) == 3
    with pytest.raises(ValueError, match="global_batch_size 10 does not divide over 4 processes"):
        ProcessShare(0, 4).local_batch_size(10)


def test_error_of_a_file_reaches_the_caller(source, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_text("nothing")
    broken = FolderSource(((str(bad), source.pairs[0][1]),) * 4, CAMVID, "ids")
    with pytest.raises(ValueError, match=r"cannot read .*bad\.png"):
        _train_batches(broken)


def _eval_batches(
    source: FolderSource, share: ProcessShare, batch_size: int, num_workers: int = 0
) -> list[dict[str, np.ndarray]]:
    with create_eval_iterator(
        source, share, global_batch_size=batch_size, num_workers=num_workers
    ) as iterator:
        return list(iterator)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 11, 16])
@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_covers_each_example_once(source, batch_size, count):
    if batch_size % count:
        pytest.skip("does not divide over the processes")
    shares = [_eval_batches(source, ProcessShare(i, count), batch_size) for i in range(count)]
    assert {len(batches) for batches in shares} == {-(-NUM_EXAMPLES // batch_size)}
    batches = [batch for batches in shares for batch in batches]
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
