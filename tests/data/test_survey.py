import numpy as np
import pytest
from PIL import Image

from regseg_jax.data.classes import create_class_table
from regseg_jax.data.sources.source import FolderSource
from regseg_jax.data.survey import find_warnings, survey_source

TABLE = create_class_table("three", [(i, f"c{i}", (i, 0, 0), 10 * i) for i in range(3)])
LABELS = ([[0, 0, 10, 255]], [[0, 0, 0, 255]])


def _save(path, array, dtype=np.uint8):
    Image.fromarray(np.array(array, dtype)).save(path)
    return str(path)


def _create_source(folder, labels=LABELS):
    pairs = []
    for i, label in enumerate(labels):
        image = _save(folder / f"{i}.png", np.zeros((*np.shape(label), 3)))
        pairs.append((image, _save(folder / f"{i}_label.png", label)))
    return FolderSource(tuple(pairs), TABLE, "ids")


def test_counts(tmp_path):
    survey = survey_source(_create_source(tmp_path), 3, "counting")
    assert survey.num_images == 2
    assert survey.sizes == {(1, 4): 2}
    assert survey.class_pixels.tolist() == [5, 1, 0]
    assert survey.present_pixels.tolist() == [8, 4, 0]
    assert survey.ignored_pixels == 2
    assert survey.labelled_pixels == 6


def test_the_first_bad_example_is_raised(tmp_path):
    source = _create_source(tmp_path, (*LABELS, [[0, 99, 0, 0]]))
    with pytest.raises(ValueError, match=r"2_label\.png holds label values \[99\]"):
        survey_source(source, 3, "counting")
    source = _create_source(tmp_path, (*LABELS, [[0, 0, 0]]))
    with pytest.raises(ValueError, match="image 2 is 1 x 3, the first of its split 1 x 4"):
        survey_source(source, 3, "counting")


def test_all_bad_examples_are_collected_and_raw_values_counted(tmp_path):
    source = _create_source(tmp_path, (*LABELS, [[0, 99, 10, 10]], [[0]], LABELS[0]))
    (tmp_path / "1.png").write_text("nothing")
    survey = survey_source(source, 3, "counting", keep_going=True)
    assert survey.num_images == 2
    assert [error.split(" holds ")[0].rpartition("/")[2][:5] for error in survey.errors] == [
        *("1.png", "2_lab", "image"),
    ]
    assert survey.class_pixels.tolist() == [4, 2, 0]
    assert survey.value_pixels == {0: 9, 10: 4, 255: 3, 99: 1}


def test_warnings_name_absent_classes_with_counts(tmp_path):
    survey = survey_source(_create_source(tmp_path), 3, "counting")
    (warning,) = find_warnings(survey, TABLE, "train")
    assert warning.startswith("warning: no label of the train split holds 'c2': 0 of 6 labelled")


def test_warnings_of_mostly_ignored_pixels(tmp_path):
    # A mask of 0 and 255 whose 255 is left to be ignored.
    source = _create_source(tmp_path, ([[0, 10, 20, 255, 255, 255, 255]],) * 2)
    (warning,) = find_warnings(survey_source(source, 3, "counting"), TABLE, "val")
    assert warning.startswith("warning: 57.1% of the val split's pixels are ignored (8 of 14);")


def test_no_warning_where_all_is_well(tmp_path):
    source = _create_source(tmp_path, ([[0, 10, 20, 255, 255, 255]],) * 2)
    assert find_warnings(survey_source(source, 3, "counting"), TABLE, "train") == []
