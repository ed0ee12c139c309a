import numpy as np
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


@pytest.mark.parametrize("shorter_side", [30, 90])
def test_the_author_s_way_gives_a_normalised_crop(source, shorter_side):
    config = AugmentConfig((40, 50), shorter_side, shorter_side)
    rng = np.random.default_rng(0)
    for _ in range(20):  # every operation comes up
        image, label = input_benchmark.load_with_pillow(source.pairs[0], config, rng)
        assert image.shape == (3, 40, 50)
        assert image.dtype == np.float32
        assert np.abs(image).max() < 3
        assert label.shape == (40, 50)
        assert set(np.unique(label)) <= {*range(34), 255}
        assert shorter_side > 30 or (label == 255).any()  # padded where smaller


def test_three_ways_are_timed(source):
    rates = input_benchmark.compare(source, AugmentConfig((40, 50), 30, 90), num_images=2)
    assert len(rates) == 3
    assert all(rate > 0 for rate in rates.values())
