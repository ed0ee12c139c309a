"""A validation split held back from the training images."""

import json

import pytest
from PIL import Image

from regseg_jax.data.dataset import DataConfig, Dataset, FolderConfig

CLASSES = ((0, "a", (1, 0, 0), 0),)


def _add_images(root, names):
    for folder, mode in (("images", "RGB"), ("labels", "L")):
        (root / "train" / folder).mkdir(parents=True, exist_ok=True)
        for i, name in enumerate(names):
            Image.new(mode, (4 + i % 2, 4)).save(root / "train" / folder / f"{name}.png")


@pytest.fixture
def data_dir(tmp_path):
    _add_images(tmp_path / "data", [f"x{i}" for i in range(10)])
    return tmp_path / "data"


def _create(data_dir, fraction=0.3, seed=0, **folder):
    data = DataConfig("folder", data_dir=str(data_dir))
    return Dataset(data, FolderConfig(val_fraction=fraction, classes=CLASSES, **folder), seed)


def _names(dataset, workdir=None):
    return [
        [example["name"] for example in dataset.create_source(split, workdir)]
        for split in ("train", "val")
    ]


def test_a_fraction_is_held_back_and_fixed_by_the_seed(data_dir):
    train, val = _names(_create(data_dir))
    assert len(val) == 3
    assert sorted(train + val) == [f"x{i}" for i in range(10)]
    assert _names(_create(data_dir)) == [train, val]
    assert len({tuple(_names(_create(data_dir, seed=seed))[1]) for seed in range(5)}) > 1


def test_sizes_go_along(data_dir):
    for split in ("train", "val"):
        source = _create(data_dir).create_source(split)
        shapes = [example["label"].shape for example in source]
        assert source.image_sizes == tuple(shapes) or len(set(shapes)) == 1


def test_what_is_held_back_is_written_down_and_kept(data_dir, tmp_path):
    dataset, run = _create(data_dir), tmp_path / "run"
    dataset.keep_val_split(run)
    _, val = _names(dataset, run)
    saved = json.loads((run / "val_split.json").read_text())
    assert saved == {"val_fraction": 0.3, "seed": 0, "names": [f"{name}.png" for name in val]}
    _add_images(data_dir, [f"y{i}" for i in range(10)])  # more images than when the run began
    assert _names(dataset)[1] != val
    dataset.keep_val_split(run)
    train, again = _names(dataset, run)
    assert again == val
    assert len(train) == 17
    (data_dir / "train" / "images" / f"{val[0]}.png").unlink()
    (data_dir / "train" / "labels" / f"{val[0]}.png").unlink()
    with pytest.raises(ValueError, match=rf"1 images of this run's val_split\.json.*{val[0]}\.png"):
        dataset.create_source("train", run)


def test_nothing_is_held_back_where_nothing_is_asked_for(data_dir, tmp_path):
    dataset = _create(data_dir, fraction=0.0)
    dataset.keep_val_split(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(
        ValueError,
        match=r"of the split 'val' \(splits that are there: train\); set --config\.data\.train_"
        r"split and --config\.data\.eval_split .*val_fraction=0\.1",
    ):
        dataset.create_source("val")


def test_a_fraction_that_leaves_one_side_empty(data_dir):
    for fraction, count in ((0.01, 0), (0.99, 10)):
        with pytest.raises(ValueError, match=rf"{fraction} of 10 training images is {count};"):
            _create(data_dir, fraction).create_source("train")
    with pytest.raises(ValueError, match=r"config\.folder\.val_fraction is 2; set a fraction"):
        FolderConfig(val_fraction=2)


def test_a_split_that_is_there_needs_no_fraction(data_dir):
    (data_dir / "train").rename(data_dir / "val")
    _add_images(data_dir, "abc")
    with pytest.raises(ValueError, match=r"there is a split 'val' already; set val_fraction to 0"):
        _create(data_dir).create_source("train")
    # As a run that held images back is scored on another split.
    assert len(_create(data_dir).create_source("val")) == 10


def test_train_and_eval_split_must_differ(data_dir):
    data = DataConfig("folder", data_dir=str(data_dir), eval_split="train")
    dataset = Dataset(data, FolderConfig(val_fraction=0.3, classes=CLASSES), 0)
    with pytest.raises(ValueError, match=r"eval_split are both 'train'; set .*eval_split=val"):
        dataset.create_source("train")


def test_one_folder_for_all(data_dir):
    folders = {"image_dir": "train/images", "label_dir": "train/labels"}
    train, val = _names(_create(data_dir, **folders))
    assert len(train) == 7
    assert not set(train) & set(val)


@pytest.mark.parametrize("key", ["image_stem", "label_stem"])
@pytest.mark.parametrize("value", ["mask", "{stem}{stem}"])
def test_stems_hold_their_field_once(key, value):
    with pytest.raises(ValueError, match=rf"config\.folder\.{key} is .*must have \{{stem\}} once"):
        FolderConfig(**{key: value})
