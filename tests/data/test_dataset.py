import sys

import pytest

from regseg_jax.data.dataset import DataConfig, Dataset, FolderConfig, name_evaluation


@pytest.mark.parametrize(
    ("train_split", "eval_split", "name"),
    [
        ("train", "val", "val"),
        ("trainval", "test", "test"),
        ("trainval", "val", "val_trained_on"),
        ("train", "trainval", "trainval_trained_on"),
        ("train", "train", "train_trained_on"),
    ],
)
def test_the_name_of_an_evaluation_says_what_was_trained_on(train_split, eval_split, name):
    assert name_evaluation(train_split, eval_split) == name


def _create_folder(*classes) -> Dataset:
    return Dataset(DataConfig("folder"), FolderConfig(classes=classes), seed=0)


def test_class_table_of_a_config():
    table = _create_folder((1, "b", (0, 0, 1), 5), (0, "a", (0, 1, 0), 9)).class_table
    assert table.class_names == ("a", "b")
    assert table.label_ids == (9, 5)
    with pytest.raises(
        ValueError, match=r"'config.folder.classes' has the training id 2 but not 1"
    ):
        _ = _create_folder((0, "a", (0, 1, 0), 9), (2, "b", (0, 0, 1), 5)).class_table


@pytest.mark.parametrize("key", ["train_split", "eval_split"])
@pytest.mark.parametrize("source", ["cityscapes", "tfds"])
def test_labels_that_are_not_public_are_neither_trained_on_nor_scored(source, key):
    with pytest.raises(ValueError, match=rf"config.data.{key} is 'test', whose labels are not"):
        DataConfig(source, **{key: "test"})


@pytest.mark.parametrize("source", ["camvid", "cityscapes", "folder"])
def test_a_data_set_on_disk_needs_its_folder(source):
    folder = FolderConfig(classes=((0, "a", (0, 1, 0), 9),))
    with pytest.raises(ValueError, match=r"--config\.data\.data_dir"):
        Dataset(DataConfig(source), folder, seed=0).create_source("train")


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    dataset = Dataset(DataConfig(source="tfds", data_dir="anywhere"), FolderConfig(), seed=0)
    with pytest.raises(ValueError, match=r"tfds.*pip install tensorflow-datasets.*\[tfds\]"):
        dataset.create_source("train")
