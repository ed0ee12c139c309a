import pathlib

import numpy as np
import pytest
from cityscapes_tree import write_cityscapes
from PIL import Image

from regseg_jax.data.classes import CITYSCAPES, IGNORE_LABEL
from regseg_jax.data.sources.cityscapes import load_cityscapes

NUM_EXAMPLES = {"train": 3, "val": 1, "test": 2}


@pytest.fixture
def tree(tmp_path) -> pathlib.Path:
    return write_cityscapes(tmp_path, num_examples=NUM_EXAMPLES, height=32, width=64)


def _labels(tree: pathlib.Path, split: str) -> list[pathlib.Path]:
    return sorted((tree / "gtFine" / split).glob("*/*_labelIds.png"))


def test_splits_and_names(tree):
    train = load_cityscapes(tree, "train", CITYSCAPES)
    assert [train[i]["name"] for i in range(3)] == [
        "aachen_000000_000019_leftImg8bit",
        "aachen_000002_000019_leftImg8bit",
        "zurich_000001_000019_leftImg8bit",
    ]
    val = load_cityscapes(tree, "val", CITYSCAPES)
    assert load_cityscapes(tree, "trainval", CITYSCAPES).pairs == train.pairs + val.pairs
    example = val[0]
    assert example["image"].shape == (32, 64, 3)
    assert example["image"].dtype == example["label"].dtype == np.uint8


def test_every_raw_id_as_the_official_table_says(tree):
    path = _labels(tree, "val")[0]
    raw = np.resize(np.append(np.arange(34), 255), (32, 64)).astype(np.uint8)
    Image.fromarray(raw).save(path)
    # trainId of labels.py of the data set's own scripts, ids 0 to 33, and license plates at -1.
    official = [255] * 7 + [0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, 6, 7, 8, 9, 10, 11]
    official += [12, 13, 14, 15, 255, 255, 16, 17, 18, 255]
    np.testing.assert_array_equal(
        load_cityscapes(tree, "val", CITYSCAPES)[0]["label"],
        np.array(official)[np.where(raw == 255, 34, raw)],
    )


def test_training_ids_serve_where_raw_ids_are_absent(tree):
    expected = load_cityscapes(tree, "val", CITYSCAPES)[0]["label"]
    path = _labels(tree, "val")[0]
    Image.fromarray(expected).save(str(path).replace("labelIds", "labelTrainIds"))
    np.testing.assert_array_equal(load_cityscapes(tree, "val", CITYSCAPES)[0]["label"], expected)
    path.unlink()
    source = load_cityscapes(tree, "val", CITYSCAPES)
    np.testing.assert_array_equal(source[0]["label"], expected)
    with pytest.raises(ValueError, match="ids labels in train and train_ids labels in val"):
        load_cityscapes(tree, "trainval", CITYSCAPES)
    Image.fromarray(np.where(expected == 0, np.uint8(19), expected)).save(source.pairs[0][1])
    with pytest.raises(ValueError, match=r"holds label values \[19\]"):
        source[0]


def test_the_test_split_has_images_and_no_labels(tree):
    source = load_cityscapes(tree, "test", CITYSCAPES)
    assert len(source) == 2
    assert (source[0]["label"] == IGNORE_LABEL).all()
    assert source[0]["label"].shape == (32, 64)


def test_missing_twin_is_named(tree):
    _labels(tree, "train")[1].unlink()
    with pytest.raises(
        ValueError, match=r"1 images .*aachen_000002.*_leftImg8bit\.png.* 0 labels .*unpack both"
    ):
        load_cityscapes(tree, "train", CITYSCAPES)
    (tree / "leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png").rename(
        tree / "leftImg8bit/val/lindau/lindau_000007_000019_leftImg8bit.png"
    )
    with pytest.raises(ValueError, match=r"1 images .*000007.* 1 labels .*000000"):
        load_cityscapes(tree, "val", CITYSCAPES)


def test_missing_gtfine_folder_is_named(tree):
    for path in _labels(tree, "train"):
        path.unlink()
    with pytest.raises(ValueError, match=r"3 images .*gtFine/train"):
        load_cityscapes(tree, "train", CITYSCAPES)


def test_wrong_split_and_wrong_folder_are_named(tree):
    with pytest.raises(ValueError, match="'valid' is none of train, val, trainval, test"):
        load_cityscapes(tree, "valid", CITYSCAPES)
    with pytest.raises(ValueError, match=r"leftImg8bit/train holds no .*--config.data.data_dir"):
        load_cityscapes(tree / "gtFine", "train", CITYSCAPES)


def test_fingerprint_knows_names_and_versions(tree):
    source = load_cityscapes(tree, "train", CITYSCAPES)
    first = source.fingerprint()
    assert load_cityscapes(tree, "train", CITYSCAPES).fingerprint() == first
    _labels(tree, "train")[0].touch()
    touched = source.fingerprint()
    assert touched.data_set == first.data_set
    assert touched.version != first.version
    assert load_cityscapes(tree, "val", CITYSCAPES).fingerprint().data_set != first.data_set
    moved = tree.rename(tree.with_name("moved"))
    assert load_cityscapes(moved, "train", CITYSCAPES).fingerprint() == touched
