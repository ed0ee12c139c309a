"""Folders as they are found."""

import pathlib
import re
import unicodedata

import pytest
from PIL import Image

from regseg_jax.data import notices
from regseg_jax.data.sources.pairing import list_images, pair_files


def _touch(folder: pathlib.Path, *names: str) -> pathlib.Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def _pair(images: pathlib.Path, labels: pathlib.Path, *stems: str) -> list[tuple[str, str]]:
    pairs = pair_files(images, labels, *stems)
    return [tuple(pathlib.Path(path).name for path in pair) for pair in pairs]


def test_other_files_are_no_images(tmp_path):
    _touch(tmp_path, "b.png", "a.JPG", "c.webp", "d.TIFF", "e.jfif")
    _touch(tmp_path, "Thumbs.db", "notes.txt", ".DS_Store", "._a.JPG", ".hidden.png", "desktop.ini")
    (tmp_path / "folder.png").mkdir()
    assert list(list_images(tmp_path)) == ["a", "b", "c", "d", "e"]


def test_two_images_that_differ_in_their_suffix_alone_are_named(tmp_path):
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    with pytest.raises(ValueError, match=r"a\.jpg and .*a\.png differ in their suffix alone"):
        list_images(tmp_path)


@pytest.mark.parametrize(("image_form", "label_form"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_either_form_of_unicode_pair(tmp_path, image_form, label_form):
    image = unicodedata.normalize(image_form, "straße_é.jpg")
    label = unicodedata.normalize(label_form, "straße_é_ö.png")
    images, labels = _touch(tmp_path / "images", image), _touch(tmp_path / "labels", label)
    assert _pair(images, labels, "{stem}_ö") == [(image, label)]


def test_suffixes_of_the_stems(tmp_path):
    images = _touch(tmp_path / "images", "a_leftImg8bit.png", "b_leftImg8bit.png")
    labels = _touch(tmp_path / "labels", "a_ids.png", "b_ids.png")
    pairs = _pair(images, labels, "{stem}_ids", "{stem}_leftImg8bit")
    assert pairs == [("a_leftImg8bit.png", "a_ids.png"), ("b_leftImg8bit.png", "b_ids.png")]


def test_files_of_other_names_are_left_out_and_that_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(notices, "_said", set())
    images = _touch(tmp_path / "images", "a.png", "b.png")
    labels = _touch(tmp_path / "labels", "a_ids.png", "a_color.png", "b_ids.png", "b_color.png")
    assert len(_pair(images, labels, "{stem}_ids")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"labels that are not called \{stem\}_ids are left out .*_color\.png", line)


@pytest.mark.parametrize(
    ("label_stem", "image_stem", "names"),
    [
        ("{stem}_mask", "{stem}", ("a.jpg", "a_mask.png", "b.png", "b_mask.png")),
        ("{stem}_mask", "{stem}", ("gas_mask.jpg", "gas_mask_mask.png")),
        ("mask_{stem}", "image_{stem}", ("image_1.png", "mask_1.png")),
        ("{stem}", "{stem}", ("a.jpg", "a.png", "b.jpeg", "b.png")),
    ],
)
def test_labels_beside_their_images(tmp_path, label_stem, image_stem, names):
    _touch(tmp_path, *names)
    pairs = _pair(tmp_path, tmp_path, label_stem, image_stem)
    assert pairs == list(zip(names[::2], names[1::2], strict=True))


def test_an_image_without_its_label_beside_it_is_named(tmp_path):
    _touch(tmp_path, "a.jpg", "a_mask.png", "b.jpg", "c_mask.png")
    with pytest.raises(
        ValueError, match=r"1 images .*no label in .*\(.*b\.jpg\), 1 labels .*\(.*c_mask\.png\);"
    ):
        pair_files(tmp_path, tmp_path, "{stem}_mask")


def test_where_no_image_is_the_suffixes_that_are_there_are_named(tmp_path):
    labels = _touch(tmp_path / "labels", "a.png")
    images = _touch(tmp_path / "images", "a.npy", "b.npy", "c.heic", "._c.png", "README")
    (images / "city").mkdir()
    with pytest.raises(
        ValueError,
        match=r"images holds no image; it holds \.npy \(2 files\), .*\.heic \(1 file\).*1 folder$",
    ):
        pair_files(images, labels, "{stem}")
    with pytest.raises(ValueError, match=r"no image that is called \{stem\}_x; it holds \.png"):
        pair_files(labels, labels, "{stem}_y", "{stem}_x")
