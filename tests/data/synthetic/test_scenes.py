import dataclasses
import pickle

import numpy as np
import pytest

from regseg_jax.data.classes import CAMVID, IGNORE_LABEL
from regseg_jax.data.synthetic.scenes import SyntheticScenes, draw_scene

HEIGHT, WIDTH = 96, 128


@pytest.fixture(scope="module")
def scenes() -> tuple[np.ndarray, np.ndarray]:
    """50 scenes: images [50, H, W, 3] and labels [50, H, W]."""
    drawn = [draw_scene(index, height=HEIGHT, width=WIDTH) for index in range(50)]
    images, labels = zip(*drawn, strict=True)
    return np.stack(images), np.stack(labels)


def _histogram_mean_iou(codes: np.ndarray, labels: np.ndarray) -> float:
    """Trains on the first 35 scenes, scores on the rest: each code gets its commonest class.

    Classes are weighed by the inverse of their frequency to the power 1/2, so that the small
    ones have a chance; without it the score is lower still.
    """
    num_classes = CAMVID.num_classes
    scored = labels != IGNORE_LABEL
    train, test = scored.copy(), scored.copy()
    train[35:], test[:35] = False, False
    counts = np.zeros((codes.max() + 1, num_classes))
    np.add.at(counts, (codes[train], labels[train]), 1)
    table = (counts / np.sqrt(counts.sum(axis=0))).argmax(axis=1)
    pairs = labels[test].astype(int) * num_classes + table[codes[test]]
    confusion = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    hits = np.diag(confusion)
    return float(np.mean(hits / (confusion.sum(0) + confusion.sum(1) - hits)))


def test_scene_depends_on_its_arguments_alone():
    first = draw_scene(7, height=HEIGHT, width=WIDTH)
    draw_scene(8, height=40, width=50)  # leaves nothing behind
    again = draw_scene(7, height=HEIGHT, width=WIDTH)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])


@pytest.mark.parametrize("other", [{"index": 8, "seed": 0}, {"index": 7, "seed": 1}])
def test_another_index_or_seed_is_another_scene(other):
    image, label = draw_scene(7, height=HEIGHT, width=WIDTH, seed=0)
    other_image, other_label = draw_scene(height=HEIGHT, width=WIDTH, **other)
    assert (image != other_image).mean() > 0.9
    assert (label != other_label).mean() > 0.1


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (75, 211), (150, 61)])
def test_shapes_types_and_values_at_odd_sizes(height, width):
    for index in range(5):
        image, label = draw_scene(index, height=height, width=width)
        assert image.shape == (height, width, 3)
        assert image.dtype == np.uint8
        assert label.shape == (height, width)
        assert label.dtype == np.uint8
        assert set(np.unique(label)) <= {*range(CAMVID.num_classes), IGNORE_LABEL}


def test_a_scene_is_the_same_at_another_size():
    for index in range(5):
        _, small = draw_scene(index, height=60, width=80)
        _, large = draw_scene(index, height=240, width=320)
        assert (small == large[1::4, 1::4]).mean() > 0.9


def test_every_class_is_common(scenes):
    _, labels = scenes
    enough = 0.002 * HEIGHT * WIDTH  # pixels
    for class_id, name in enumerate(CAMVID.class_names):
        present = ((labels == class_id).sum(axis=(1, 2)) >= enough).mean()
        assert present >= 0.6, name
    assert (labels == IGNORE_LABEL).mean() < 0.02


def test_classes_lie_where_a_street_has_them(scenes):
    _, labels = scenes
    rows = np.broadcast_to(np.arange(HEIGHT)[:, None], labels.shape)
    mean_row = {
        name: rows[labels == class_id].mean() / HEIGHT
        for class_id, name in enumerate(CAMVID.class_names)
    }
    assert mean_row["sky"] < mean_row["sign"] < mean_row["car"] < mean_row["road"]


def test_light_varies_between_scenes(scenes):
    images, _ = scenes
    brightness = images.mean(axis=(1, 2, 3))
    assert brightness.max() - brightness.min() > 60
    assert 60 < brightness.mean() < 190


def test_colour_alone_says_little(scenes):
    images, labels = scenes
    red, green, blue = (images[..., channel].astype(int) // 16 for channel in range(3))
    assert _histogram_mean_iou((red * 16 + green) * 16 + blue, labels) < 0.3


def test_colour_and_place_say_little(scenes):
    images, labels = scenes
    red, green, blue = (images[..., channel].astype(int) // 43 for channel in range(3))
    row, column = np.mgrid[:HEIGHT, :WIDTH] // 12
    codes = (((red * 6 + green) * 6 + blue) * 8 + row) * 11 + column
    assert _histogram_mean_iou(codes, labels) < 0.35


def test_source_gives_its_scenes():
    source = SyntheticScenes(num_examples=3, height=40, width=50, seed=2)
    assert len(source) == 3
    example = source[1]
    image, label = draw_scene(1, height=40, width=50, seed=2)
    np.testing.assert_array_equal(example["image"], image)
    np.testing.assert_array_equal(example["label"], label)
    assert len({source[index]["name"] for index in range(3)}) == 3


def test_source_travels_to_a_worker_and_cannot_change():
    source = SyntheticScenes(num_examples=3, height=40, width=50)
    assert pickle.loads(pickle.dumps(source)) == source
    with pytest.raises(dataclasses.FrozenInstanceError):
        source.seed = 1


@pytest.mark.parametrize("index", [-1, 3])
def test_index_out_of_range(index):
    source = SyntheticScenes(num_examples=3, height=40, width=50)
    with pytest.raises(IndexError, match=f"scene {index} of a source of 3"):
        source[index]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"height": 31}, "31 x 64: both must be at least 32"),
        ({"width": 0}, "64 x 0: both must be at least 32"),
        ({"seed": -2}, "seed -2"),
        ({"num_examples": 0}, "num_examples is 0"),
    ],
)
def test_bad_arguments(changed, message):
    arguments = {"num_examples": 1, "height": 64, "width": 64, **changed}
    with pytest.raises(ValueError, match=message):
        SyntheticScenes(**arguments)
