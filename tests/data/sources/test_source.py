import pathlib
import pickle
import re

import numpy as np
import pytest
from PIL import ExifTags, Image

from regseg_jax.data.classes import CAMVID, IGNORE_LABEL
from regseg_jax.data.decode import load_image
from regseg_jax.data.sources.source import load_camvid

HEIGHT, WIDTH = 6, 8
RAW_IDS = np.resize(np.arange(12, dtype=np.uint8), (HEIGHT, WIDTH))  # 11 is void


def _write(path: pathlib.Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def _image(seed: int = 0, height: int = HEIGHT) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, WIDTH, 3), np.uint8)


def _write_segnet(root: pathlib.Path, split: str, names: tuple[str, ...]) -> None:
    for i, name in enumerate(names):
        _write(root / split / f"{name}.png", _image(i))
        _write(root / f"{split}annot" / f"{name}.png", RAW_IDS)


@pytest.fixture
def segnet_dir(tmp_path: pathlib.Path) -> pathlib.Path:
    _write_segnet(tmp_path, "train", ("b", "a"))
    _write_segnet(tmp_path, "val", ("c",))
    return tmp_path


def _train_id(name: str) -> int:
    return CAMVID.class_names.index(name)


def test_segnet_layout(segnet_dir):
    source = load_camvid(segnet_dir, "train", CAMVID)
    assert len(source) == 2
    example = source[1]
    assert example["name"] == "b"  # sorted by name
    np.testing.assert_array_equal(example["image"], _image(0))
    assert example["image"].dtype == example["label"].dtype == np.uint8
    label = example["label"]
    assert label.shape == (HEIGHT, WIDTH)
    assert (label[RAW_IDS == 0] == _train_id("sky")).all()
    assert (label[RAW_IDS == 3] == _train_id("road")).all()
    assert (label[RAW_IDS == 10] == _train_id("bicyclist")).all()
    assert (label[RAW_IDS == 11] == IGNORE_LABEL).all()
    assert sorted(np.unique(label)) == [*range(11), IGNORE_LABEL]


def test_original_layout_of_colors(tmp_path):
    colors = np.array(CAMVID.colors + CAMVID.ignored_colors, np.uint8).reshape(4, 8, 3)
    _write(tmp_path / "test" / "x.png", _image(height=4))
    _write(tmp_path / "test_labels" / "x_L.png", colors)
    source = load_camvid(tmp_path, "test", CAMVID)
    expected = np.concatenate([np.arange(11), np.full(21, IGNORE_LABEL)]).reshape(4, 8)
    np.testing.assert_array_equal(source[0]["label"], expected)
    assert source[0]["label"].dtype == np.uint8


def test_trainval_is_train_then_val(segnet_dir):
    source = load_camvid(segnet_dir, "trainval", CAMVID)
    assert [source[i]["name"] for i in range(len(source))] == ["a", "b", "c"]


def test_a_source_survives_pickling(segnet_dir):
    source = load_camvid(segnet_dir, "train", CAMVID)
    again = pickle.loads(pickle.dumps(source))
    assert again == source
    np.testing.assert_array_equal(again[0]["label"], source[0]["label"])


def test_wrong_split_is_named(segnet_dir):
    with pytest.raises(ValueError, match=r"'valid' is none of train, val, trainval, test"):
        load_camvid(segnet_dir, "valid", CAMVID)


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no CamVid train split.*trainannot/.*train_labels/") as e:
        load_camvid(tmp_path, "train", CAMVID)
    assert str(tmp_path) in str(e.value)
    assert "--config.data.data_dir" in str(e.value)
    with pytest.raises(ValueError, match="no CamVid train split"):
        load_camvid(tmp_path / "absent", "train", CAMVID)
    (tmp_path / "trainannot").mkdir()
    with pytest.raises(ValueError, match=f"no folder of images {re.escape(str(tmp_path))}/train$"):
        load_camvid(tmp_path, "train", CAMVID)


def test_missing_half_of_trainval_is_named(tmp_path):
    _write_segnet(tmp_path, "train", ("a",))
    with pytest.raises(ValueError, match="no CamVid val split"):
        load_camvid(tmp_path, "trainval", CAMVID)


def test_empty_split_is_named(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "trainannot").mkdir()
    with pytest.raises(ValueError, match=r"train holds no image; it is empty"):
        load_camvid(tmp_path, "train", CAMVID)


def test_image_without_label_and_label_without_image_are_named(segnet_dir):
    (segnet_dir / "trainannot" / "a.png").unlink()
    with pytest.raises(ValueError, match=r"1 images .* no label .*train/a\.png.* 0 labels"):
        load_camvid(segnet_dir, "train", CAMVID)
    (segnet_dir / "train" / "a.png").unlink()
    (segnet_dir / "val" / "c.png").rename(segnet_dir / "val" / "d.png")
    assert len(load_camvid(segnet_dir, "train", CAMVID)) == 1
    with pytest.raises(
        ValueError, match=r"1 images .*val/d\.png.*1 labels have no image .*valannot/c\.png"
    ):
        load_camvid(segnet_dir, "val", CAMVID)


@pytest.mark.parametrize("folder", ["train", "trainannot"])
@pytest.mark.parametrize("fraction", [0, 0.2, 0.6, 0.9])
def test_truncated_png_is_named(segnet_dir, folder, fraction):
    path = segnet_dir / folder / "a.png"
    _write(path, np.random.default_rng(0).integers(0, 11, (40, 50), np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    source = load_camvid(segnet_dir, "train", CAMVID)
    with pytest.raises(ValueError, match=f"cannot read {re.escape(str(path))}.*restore the file"):
        source[0]


def test_a_file_that_is_no_image_is_named(segnet_dir):
    path = segnet_dir / "train" / "a.png"
    path.write_text("not an image")
    with pytest.raises(ValueError, match=f"cannot read {re.escape(str(path))}"):
        load_camvid(segnet_dir, "train", CAMVID)[0]
    (segnet_dir / "image.ppm").write_text("P6 8 x 255")  # Pillow's own error names no file
    with pytest.raises(ValueError, match=r"cannot read .*image\.ppm"):
        load_image(segnet_dir / "image.ppm")
    with pytest.raises(ValueError, match=r"cannot read .*absent\.png"):
        load_image(segnet_dir / "absent.png")


def test_size_mismatch_is_named(segnet_dir):
    path = segnet_dir / "trainannot" / "a.png"
    _write(path, RAW_IDS[:5])
    with pytest.raises(
        ValueError, match=rf"{re.escape(str(path))} is 5 x 8, its image .*a\.png 6 x 8"
    ):
        load_camvid(segnet_dir, "train", CAMVID)[0]


def test_an_image_turned_by_its_exif_orientation_fits_an_upright_label(segnet_dir):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # stored on its side
    image = Image.fromarray(np.rot90(_image(0)).copy())
    image.save(segnet_dir / "train" / "b.png", exif=exif)
    source = load_camvid(segnet_dir, "train", CAMVID)
    np.testing.assert_array_equal(source[1]["image"], _image(0))
    path = segnet_dir / "trainannot" / "b.png"
    _write(path, RAW_IDS.reshape(WIDTH, HEIGHT))
    with pytest.raises(
        ValueError, match=r"b\.png is 8 x 6, its image .* 6 x 8 after .* EXIF orientation 6"
    ):
        source[1]


def test_unknown_label_value_is_named(segnet_dir):
    path = segnet_dir / "trainannot" / "a.png"
    _write(path, np.where(RAW_IDS == 4, np.uint8(77), RAW_IDS))
    with pytest.raises(
        ValueError, match=rf"{re.escape(str(path))} holds label values \[77\] that.*fix the file"
    ):
        load_camvid(segnet_dir, "train", CAMVID)[0]


def test_unknown_color_is_named(tmp_path):
    _write(tmp_path / "train" / "x.png", _image())
    _write(tmp_path / "train_labels" / "x_L.png", np.full((HEIGHT, WIDTH, 3), (1, 2, 3), np.uint8))
    with pytest.raises(ValueError, match=r"x_L\.png holds label colours \[\(1, 2, 3\)\]"):
        load_camvid(tmp_path, "train", CAMVID)[0]


def test_colored_file_where_ids_are_expected_is_named(segnet_dir):
    path = segnet_dir / "trainannot" / "a.png"
    _write(path, _image())
    with pytest.raises(
        ValueError, match=rf"{re.escape(str(path))} is not one channel.*mode RGB.*8-bit or 16-bit"
    ):
        load_camvid(segnet_dir, "train", CAMVID)[0]


def test_real_camvid(camvid_dir):
    source = load_camvid(camvid_dir, "trainval", CAMVID)
    assert len(source) == 367 + 101
    example = source[0]
    assert example["image"].shape == (360, 480, 3)
    assert set(np.unique(example["label"])) <= {*range(11), IGNORE_LABEL}
