import pathlib

import numpy as np
import pytest
from PIL import Image

from regseg_jax.data.classes import create_class_table
from regseg_jax.data.sources.folder import load_folder

TABLE = create_class_table(
    "mine", ((0, "a", (1, 0, 0), 4), (1, "b", (0, 1, 0), 9)), (0, 255), ((9, 9, 9),)
)
DEFAULTS = {
    "image_dir": "{split}/images",
    "label_dir": "{split}/labels",
    "label_stem": "{stem}",
    "label_format": "ids",
}


def _write(path: pathlib.Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def _write_pair(root: pathlib.Path, name: str, size: tuple[int, int]) -> None:
    _write(root / "train/images" / f"{name}.jpg", np.zeros((*size, 3), np.uint8))
    _write(root / "train/labels" / f"{name}.png", np.resize([0, 4, 9], size).astype(np.uint8))


def test_sizes_are_known_without_decoding(tmp_path):
    sizes = ((4, 6), (5, 3), (4, 6))
    for name, size in zip("abc", sizes, strict=True):
        _write_pair(tmp_path, name, size)
    source = load_folder(tmp_path, "train", TABLE, **DEFAULTS)
    assert source.image_sizes == sizes
    assert [example["label"].shape for example in source] == list(sizes)
    assert source[1]["label"].tolist() == [[255, 0, 1]] * 5


def test_one_size_is_nothing_special(tmp_path):
    _write_pair(tmp_path, "a", (4, 6))
    _write_pair(tmp_path, "b", (4, 6))
    assert load_folder(tmp_path, "train", TABLE, **DEFAULTS).image_sizes is None


def test_other_names_and_colors(tmp_path):
    _write(tmp_path / "pictures" / "fold1" / "x.png", np.zeros((1, 3, 3), np.uint8))
    colors = np.array([[(1, 0, 0), (0, 1, 0), (9, 9, 9)]], np.uint8)
    _write(tmp_path / "masks" / "fold1" / "x_mask.png", colors)
    source = load_folder(
        tmp_path,
        "fold1",
        TABLE,
        image_dir="pictures/{split}",
        label_dir="masks/{split}",
        label_stem="{stem}_mask",
        label_format="colors",
    )
    assert source[0]["label"].tolist() == [[0, 1, 255]]


def test_faults_are_named(tmp_path):
    _write_pair(tmp_path, "a", (4, 6))
    with pytest.raises(ValueError, match=r"no folder .*valid/images of the split 'valid'"):
        load_folder(tmp_path, "valid", TABLE, **DEFAULTS)
    (tmp_path / "train/images/b.png").write_text("nothing")
    with pytest.raises(ValueError, match=r"1 images .*no label .*b\.png"):
        load_folder(tmp_path, "train", TABLE, **DEFAULTS)
    _write(tmp_path / "train/labels/b.png", np.zeros((4, 6), np.uint8))
    source = load_folder(tmp_path, "train", TABLE, **DEFAULTS)
    assert source[0]["label"].shape == (4, 6)
    with pytest.raises(ValueError, match=r"cannot read .*b\.png"):
        source[1]
