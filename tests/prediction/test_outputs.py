import json

import numpy as np
import pytest
from PIL import Image

from regseg_jax.data.classes import CAMVID, create_class_table
from regseg_jax.prediction.inputs import Input
from regseg_jax.prediction.outputs import (
    ClassMapFormat,
    Drawing,
    ImageWriter,
    check_outputs,
    write_classes,
)

PREDICTION = np.arange(11, dtype=np.uint8).reshape(1, 11)
TABLE = create_class_table("mine", [(0, "cat", (9, 0, 0), 300), (1, "dog", (0, 9, 0), 7)])


def test_class_maps_hold_label_values_in_the_classes_colours(tmp_path):
    ClassMapFormat(CAMVID, CAMVID.label_ids).encode(PREDICTION).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), [CAMVID.label_ids])
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), [CAMVID.colors])


def test_values_above_8_bits_become_16_bit_grey(tmp_path):
    map_format = ClassMapFormat(TABLE, TABLE.label_ids)
    map_format.encode(PREDICTION[:, :2]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), [[300, 7]])
    with pytest.raises(ValueError, match=r"'mine' has the label id 70000.*--train_ids"):
        ClassMapFormat(TABLE, (70000, 1))


def test_classes_are_described_beside_the_maps(tmp_path):
    write_classes(tmp_path, ClassMapFormat(TABLE, TABLE.label_ids))
    assert json.loads((tmp_path / "classes.json").read_text()) == [
        {"value": 7, "name": "dog", "color": [0, 9, 0]},
        {"value": 300, "name": "cat", "color": [9, 0, 0]},
    ]
    write_classes(tmp_path, ClassMapFormat(TABLE, TABLE.label_ids))
    with pytest.raises(ValueError, match=r"classes\.json exists .* other values"):
        write_classes(tmp_path, ClassMapFormat(TABLE, (0, 1)))


@pytest.mark.parametrize(
    ("drawing", "files"),
    [
        (Drawing(), ["sub/a.png", "sub/a_overlay.png"]),
        (Drawing(class_maps=True, overlays=False), ["sub/a.png"]),
        (Drawing(class_maps=False), ["sub/a_overlay.png"]),
    ],
)
def test_what_is_asked_for_is_written(tmp_path, drawing, files):
    writer = ImageWriter(tmp_path, ClassMapFormat(CAMVID, CAMVID.label_ids), drawing)
    writer.write("sub/a", np.zeros((1, 11, 3), np.uint8), PREDICTION)
    written = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png"))
    assert written == files
    assert drawing.get_image_paths(tmp_path, "sub/a") == [tmp_path / name for name in files]


def test_overlays_without_a_legend_and_with_another_weight(tmp_path):
    drawing = Drawing(alpha=1.0, legend=False)
    writer = ImageWriter(tmp_path, ClassMapFormat(CAMVID, CAMVID.label_ids), drawing)
    writer.write("a", np.zeros((1, 11, 3), np.uint8), PREDICTION)
    overlay = np.asarray(Image.open(tmp_path / "a_overlay.png"))
    np.testing.assert_array_equal(overlay, [CAMVID.colors])


def test_drawings_that_make_no_sense():
    with pytest.raises(ValueError, match=r"--alpha is 1\.5"):
        Drawing(alpha=1.5)
    with pytest.raises(ValueError, match="neither class maps nor overlays"):
        Drawing(class_maps=False, overlays=False)


def test_no_input_and_no_prediction_is_replaced(tmp_path):
    drawing, entry = Drawing(), Input(tmp_path / "a.png", "a")
    with pytest.raises(ValueError, match=r"of .*a\.png would replace another input"):
        check_outputs({entry: drawing.get_image_paths(tmp_path, "a")})
    out = tmp_path / "out"
    entries = [Input(tmp_path / f"{name}.png", name) for name in ("a", "a_overlay")]
    with pytest.raises(ValueError, match=r"a_overlay\.png; choose another --output"):
        check_outputs({x: drawing.get_image_paths(out, x.name) for x in entries})
