import pytest
from cityscapes_tree import write_cityscapes

from regseg_jax.benchmark import input as input_benchmark
from regseg_jax.data.augment import AugmentConfig
from regseg_jax.data.classes import CITYSCAPES
from regseg_jax.data.sources.cityscapes import load_cityscapes


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    write_cityscapes(root, num_examples={"train": 3}, height=48, width=96)
    return load_cityscapes(root, "train", CITYSCAPES)


def test_four_ways_are_timed(source):
    rates = input_benchmark.compare_ways(source, AugmentConfig((40, 50), 30, 90), num_images=2)
    assert len(rates) == 4
    assert all(rate > 0 for rate in rates.values())


def test_cores_feed_the_accelerators():
    # 8 images in 100 ms are 80 a second; a core that decodes 30 a second is a third of enough.
    assert input_benchmark.count_cores(30, images_per_step=8, step_ms=100) == [3, 11, 22]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_pipeline_is_timed(source, num_workers):
    rate = input_benchmark.measure_pipeline(source, 2, num_workers, num_images=4)
    assert 0 < rate < float("inf")


def test_bad_workers_are_named():
    assert input_benchmark.parse_workers(["0", "12"]) == [0, 12]
    with pytest.raises(ValueError, match="--workers is 1,-2"):
        input_benchmark.parse_workers(["1", "-2"])
