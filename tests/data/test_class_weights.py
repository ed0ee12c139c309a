import json
import math

import numpy as np
import pytest
from PIL import Image

from regseg_jax.data import class_weights
from regseg_jax.data.class_weights import RULES, compute_class_weights, load_class_weights
from regseg_jax.data.classes import CAMVID, create_class_table
from regseg_jax.data.sources.source import FolderSource, load_camvid
from regseg_jax.data.survey import survey_source

TABLE = create_class_table("four", [(i, f"c{i}", (i, 0, 0), i) for i in range(4)])
# The pixels of each class: 6, 1, 1, 0; of images that show it: 12, 4, 4, 0 (two are ignored).
LABELS = ([0, 0, 1, 255], [0, 0, 0, 255], [0, 2, 255, 255])
MEDIAN_FREQUENCY = (0.25 / 0.5, 1, 1, 1)
INVERSE_LOG = tuple(1 / math.log(1.02 + pixels / 8) for pixels in (6, 1, 1, 0))


@pytest.fixture
def source(tmp_path):
    pairs = []
    for i, label in enumerate(LABELS):
        paths = (tmp_path / f"{i}.png", tmp_path / f"{i}_label.png")
        Image.new("RGB", (4, 1)).save(paths[0])
        Image.fromarray(np.array([label], np.uint8)).save(paths[1])
        pairs.append(tuple(map(str, paths)))
    return FolderSource(tuple(pairs), TABLE, "ids")


@pytest.mark.parametrize(
    ("rule", "expected"), [("median_frequency", MEDIAN_FREQUENCY), ("inverse_log", INVERSE_LOG)]
)
def test_rules(source, tmp_path, rule, expected):
    weights = load_class_weights(rule, tmp_path / "run", source, TABLE)
    assert weights == pytest.approx(expected)
    saved = json.loads((tmp_path / "run" / "class_weights.json").read_text())
    assert saved["pixels_per_class"] == {"c0": 6, "c1": 1, "c2": 1, "c3": 0}
    assert saved["ignored_pixels"] == 4
    assert list(saved["weights"].values()) == list(weights)


def test_counted_once(source, tmp_path, monkeypatch):
    survey = survey_source(source, 4, "counting")

    def fail(*_):
        raise AssertionError("counted again")

    monkeypatch.setattr(class_weights, "survey_source", fail)
    first = load_class_weights("inverse_log", tmp_path, source, TABLE, survey)
    assert load_class_weights("inverse_log", tmp_path, source, TABLE) == first
    with pytest.raises(ValueError, match=r"class_weights\.json holds the class weights of another"):
        load_class_weights("median_frequency", tmp_path, source, TABLE)


def test_other_processes_write_nothing(source, tmp_path):
    load_class_weights("inverse_log", tmp_path / "run", source, TABLE, write=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", ["", ()])
def test_none(source, tmp_path, setting):
    assert load_class_weights(setting, tmp_path, source, TABLE) is None


def test_numbers(source, tmp_path):
    assert load_class_weights((1, 2.5, 1, 1), tmp_path, source, TABLE) == (1.0, 2.5, 1.0, 1.0)
    for wrong in ((1, 2, 3), (1, 2, 3, -1), (1, 2, 3, "4"), (1, 2, 3, 0), 5):
        with pytest.raises(ValueError, match="set a positive number for each of the 4 classes"):
            load_class_weights(wrong, tmp_path, source, TABLE)
    with pytest.raises(ValueError, match=r"class_weights is 'median'; set numbers, one of median_"):
        load_class_weights("median", tmp_path, source, TABLE)


def test_labels_without_a_class_have_no_weights(source):
    survey = survey_source(FolderSource(((source.pairs[0][0], None),), TABLE, "ids"), 4, "x")
    for rule in RULES:
        with pytest.raises(ValueError, match="no pixel of the training labels has a class"):
            compute_class_weights(rule, survey)


def test_real_camvid_has_the_published_weights(camvid_dir):
    survey = survey_source(load_camvid(camvid_dir, "train", CAMVID), 11, "counting")
    weights = compute_class_weights("median_frequency", survey)
    # SegNet's, of its CamVid prototxt, except the sign's, which counts other labels.
    published = {"sky": 0.2595, "building": 0.1826, "pole": 4.5640, "road": 0.1417}
    published |= {"sidewalk": 0.9051, "tree": 0.3826, "fence": 1.8418, "pedestrian": 6.2478}
    found = {name: weights[CAMVID.class_names.index(name)] for name in published}
    scale = found["sky"] / published["sky"]  # their median is another, for 12 classes
    assert found == pytest.approx({name: scale * x for name, x in published.items()}, rel=0.06)
