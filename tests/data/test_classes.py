import dataclasses

import numpy as np
import pytest

from regseg_jax.data.classes import CAMVID, CITYSCAPES, IGNORE_LABEL, create_class_table
from regseg_jax.data.sources.source import load_camvid

# The order of the SegNet edition's label values.
SEGNET_ORDER = (
    "sky",
    "building",
    "pole",
    "road",
    "sidewalk",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)


@pytest.mark.parametrize(("table", "num_classes"), [(CAMVID, 11), (CITYSCAPES, 19)])
def test_a_row_for_each_class_and_no_value_twice(table, num_classes):
    assert table.num_classes == num_classes
    assert len(table.class_names) == len(set(table.class_names)) == num_classes
    assert len(table.colors) == len(set(table.colors)) == num_classes
    assert len(table.label_ids) == num_classes
    values = table.label_ids + table.ignored_label_ids
    assert len(set(values)) == len(values)
    assert not set(table.colors) & set(table.ignored_colors)


def test_cityscapes_knows_every_label_id():
    assert set(CITYSCAPES.label_ids + CITYSCAPES.ignored_label_ids) == {*range(34), IGNORE_LABEL}


def test_the_reduced_mean_leaves_out_truck_bus_and_train():
    names = [CITYSCAPES.class_names[i] for i in CITYSCAPES.reduced_without]
    assert names == ["truck", "bus", "train"]


def test_camvid_training_ids_have_the_order_of_the_full_size_protocol():
    assert CAMVID.class_names == (
        "building",
        "tree",
        "sky",
        "car",
        "sign",
        "road",
        "pedestrian",
        "fence",
        "pole",
        "sidewalk",
        "bicyclist",
    )


def test_camvid_label_ids_are_the_segnet_order():
    assert {name: SEGNET_ORDER.index(name) for name in CAMVID.class_names} == dict(
        zip(CAMVID.class_names, CAMVID.label_ids, strict=True)
    )
    assert set(CAMVID.ignored_label_ids) == {11, IGNORE_LABEL}


def test_camvid_colors_are_all_32_of_the_data_set_and_distinct():
    colors = CAMVID.colors + CAMVID.ignored_colors
    assert len(set(colors)) == 32
    assert all(len(color) == 3 and all(0 <= c <= 255 for c in color) for color in colors)
    # Spot checks against the data set's label_colors.txt.
    known = {"road": (128, 64, 128), "sky": (128, 128, 128), "bicyclist": (0, 128, 192)}
    for name, color in known.items():
        assert CAMVID.colors[CAMVID.class_names.index(name)] == color
    assert (0, 0, 0) in CAMVID.ignored_colors  # void


def test_a_table_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CAMVID.name = "other"


def test_camvid_names_fit_the_real_labels(camvid_dir):
    """Sky is above, road below, and both are among the four commonest classes."""
    source = load_camvid(camvid_dir, "val", CAMVID)
    labels = np.stack([source[i]["label"] for i in range(0, len(source), 20)])
    height = labels.shape[1]
    mean_row = {
        name: np.nonzero(labels == i)[1].mean() / height
        for i, name in enumerate(CAMVID.class_names)
        if (labels == i).any()
    }
    assert mean_row["sky"] < 0.35 < 0.65 < mean_row["road"]
    assert mean_row["sky"] < mean_row["building"] < mean_row["sidewalk"]
    counts = np.bincount(labels[labels != IGNORE_LABEL], minlength=11)
    commonest = {CAMVID.class_names[i] for i in np.argsort(counts)[-5:]}
    assert {"sky", "road", "building"} <= commonest


ROWS = ((1, "cat", (9, 0, 0), 7), (0, "dog", (0, 9, 0), 3))


def test_table_of_a_config():
    table = create_class_table("mine", ROWS, (0, 255), ((1, 1, 1),))
    assert table.class_names == ("dog", "cat")  # by training id
    assert table.label_ids == (3, 7)
    assert table.colors == ((0, 9, 0), (9, 0, 0))
    assert table.ignored_label_ids == (0, 255)
    # As JSON gives it back.
    again = create_class_table("mine", [[*row[:2], [*row[2]], row[3]] for row in ROWS], [0, 255])
    assert again.colors == table.colors
    assert hash(again)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "'mine' has 0 classes; give 1 to 254"),
        ((ROWS[0],), "has the training id 1 but not 0; number its 1 classes from 0 to 0"),
        ((*ROWS, (3, "cow", (0, 0, 9), 9)), "has the training id 3 but not 2"),
        ((*ROWS, (1, "cow", (0, 0, 9), 9)), "has the training id 1 twice"),
        ((*ROWS, (2, "cat", (0, 0, 9), 9)), "has the class name 'cat' twice"),
        ((*ROWS, (2, "cow", (9, 0, 0), 9)), r"has the colour \(9, 0, 0\) twice"),
        ((*ROWS, (2, "cow", (0, 0, 9), 3)), "has the label id 3 twice"),
        ((*ROWS, (2, "cow", (0, 0, 9), 255)), "has the label id 255 twice"),
        ((*ROWS, (2, "cow", (0, 0, 256), 9)), r"row \(2, 'cow', \(0, 0, 256\), 9\); write"),
        ((*ROWS, (2, "cow", 9)), r"row \(2, 'cow', 9\); write \(training id, name"),
    ],
)
def test_faults_of_a_config_s_table_are_named(rows, message):
    with pytest.raises(ValueError, match=message):
        create_class_table("mine", rows)


@pytest.mark.parametrize(
    ("ignored", "message"),
    [
        ({"ignored_label_ids": (-1,)}, "ignores the label id -1; write whole numbers"),
        ({"ignored_label_ids": ("255",)}, "ignores the label id '255'"),
        ({"ignored_colors": ((0, 0, 300),)}, r"ignores the colour \(0, 0, 300\)"),
        ({"ignored_colors": (7,)}, "ignores the colour 7"),
    ],
)
def test_ignored_values_are_checked(ignored, message):
    with pytest.raises(ValueError, match=message):
        create_class_table("mine", [(0, "cat", (9, 0, 0), 3)], **ignored)
