import pytest

from regseg_jax.config import create_default_config, validate_config
from regseg_jax.runs import run


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
    assert run.name_evaluation(train_split, eval_split) == name


def test_class_table_of_a_config():
    config = create_default_config()
    config.data.source = "folder"
    config.folder.classes = ((1, "b", (0, 0, 1), 5), (0, "a", (0, 1, 0), 9))
    table = run.get_class_table(config)
    assert table.class_names == ("a", "b")
    assert table.label_ids == (9, 5)
    config.folder.classes = ((0, "a", (0, 1, 0), 9), (2, "b", (0, 0, 1), 5))
    with pytest.raises(
        ValueError, match=r"'config.folder.classes' has the training id 2 but not 1"
    ):
        run.get_class_table(config)


@pytest.mark.parametrize("key", ["train_split", "eval_split"])
@pytest.mark.parametrize("source", ["cityscapes", "tfds"])
def test_labels_that_are_not_public_are_neither_trained_on_nor_scored(source, key):
    config = create_default_config()
    config.data.source = source
    config.data[key] = "test"
    with pytest.raises(ValueError, match=rf"config.data.{key} is 'test', whose labels are not"):
        validate_config(config)
