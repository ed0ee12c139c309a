import numpy as np
import pytest
from PIL import Image

from regseg_jax.data.classes import CAMVID, IGNORE_LABEL
from regseg_jax.reports import pictures

HEIGHT, WIDTH = 12, 16


@pytest.fixture
def example():
    """Two classes side by side with an ignored row; the prediction is wrong in one column."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    label = np.full((HEIGHT, WIDTH), 5, np.uint8)
    label[:, WIDTH // 2 :] = 2
    prediction = label.copy()
    prediction[:, 0] = 3
    label[0] = IGNORE_LABEL
    return image, label, prediction


def has_color(picture, color):
    return bool((np.asarray(picture) == color).all(-1).any())


def test_colorize_uses_the_tables_colours_and_black_for_ignored():
    label = np.array([[0, 10, IGNORE_LABEL]], np.int32)
    colors = pictures.colorize(label, CAMVID)
    assert colors.dtype == np.uint8
    assert colors.tolist() == [[[128, 0, 0], [0, 128, 192], [0, 0, 0]]]


@pytest.mark.parametrize("value", [11, -1, 254])
def test_colorize_names_an_unknown_value(value):
    with pytest.raises(ValueError, match=rf"\[{value}\] are not training ids of 'camvid'"):
        pictures.colorize(np.array([[0, value]]), CAMVID)


def test_the_legend_of_a_panel_shows_every_class(example):
    image, label, prediction = example
    panel = pictures.draw_panel(image, np.zeros_like(label), prediction * 0, CAMVID)
    assert all(has_color(panel, color) for color in CAMVID.colors)


def test_panel_enlarges_small_images_by_an_integer_factor(example):
    image, label, prediction = example
    panel = np.asarray(pictures.draw_panel(image, label, prediction, CAMVID))
    factor = 320 // WIDTH
    enlarged = image.repeat(factor, 0).repeat(factor, 1)
    title_height = 2 * 14
    tile = panel[title_height : title_height + enlarged.shape[0], : enlarged.shape[1]]
    np.testing.assert_array_equal(tile, enlarged)


def test_panel_shrinks_large_images(example):
    large = [array.repeat(100, 0).repeat(100, 1) for array in example]  # 1200 x 1600
    panel = pictures.draw_panel(*large, CAMVID)
    assert 4 * 800 <= panel.width < 4 * 850
    assert panel.height < 850


def test_error_map_marks_wrong_and_ignored_pixels(example):
    image, label, prediction = example
    panel = np.asarray(pictures.draw_panel(image, label, prediction, CAMVID))
    error_tile = panel[28 : 28 + HEIGHT * 20 : 20, -WIDTH * 20 :: 20]
    assert (error_tile[0] == pictures.UNSCORED_COLOR).all()
    assert (error_tile[1:, 0] == pictures.WRONG_COLOR).all()
    assert (error_tile[1:, 1:] <= 0.4 * image[1:, 1:]).all()


def test_panel_of_an_unlabelled_image_divides_by_no_zero(example):
    image, label, prediction = example
    pictures.draw_panel(image, np.full_like(label, IGNORE_LABEL), prediction, CAMVID)


def test_panel_names_shapes_that_disagree(example):
    image, label, prediction = example
    with pytest.raises(ValueError, match=r"the label has shape \(11, 16\), the image \(12, 16\)"):
        pictures.draw_panel(image, label[1:], prediction, CAMVID)
    with pytest.raises(ValueError, match=r"float32\[12, 16, 3\].*before normalisation"):
        pictures.draw_panel(image.astype(np.float32), label, prediction, CAMVID)


def test_overlay_blends_at_full_size_and_leaves_ignored_pixels(example):
    image, _, prediction = example
    image, prediction = (array.repeat(10, 0).repeat(10, 1) for array in (image, prediction))
    prediction[0] = IGNORE_LABEL
    overlay = pictures.draw_overlay(image, prediction, CAMVID, alpha=0.25)
    blended = np.asarray(overlay)[: image.shape[0]].astype(float)
    assert overlay.width == image.shape[1]
    np.testing.assert_array_equal(blended[0], image[0])
    expected = 0.75 * image + 0.25 * pictures.colorize(prediction, CAMVID)
    np.testing.assert_allclose(blended[1:], expected[1:], atol=1)


def test_overlays_legend_has_the_classes_that_are_present(example):
    image, _, prediction = example
    image, prediction = (array.repeat(10, 0).repeat(10, 1) for array in (image, prediction))
    overlay = pictures.draw_overlay(image, prediction, CAMVID)
    legend = np.asarray(overlay)[image.shape[0] :]
    present = [i for i, color in enumerate(CAMVID.colors) if has_color(legend, color)]
    assert present == [2, 3, 5]


def test_overlay_names_a_bad_alpha(example):
    image, _, prediction = example
    with pytest.raises(ValueError, match=r"alpha is 1\.5"):
        pictures.draw_overlay(image, prediction, CAMVID, alpha=1.5)


def test_save_png_creates_the_folder_and_leaves_no_other_file(tmp_path, example):
    path = tmp_path / "new" / "image.png"
    pictures.save_png(example[0], path)
    pictures.save_png(Image.fromarray(example[0]), path)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), example[0])
    assert list(path.parent.iterdir()) == [path]


def test_save_png_keeps_the_old_file_when_it_fails(tmp_path, example, monkeypatch):
    path = tmp_path / "image.png"
    pictures.save_png(example[0], path)
    old = path.read_bytes()

    def fail_half_way(self, target, **_):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail_half_way)
    with pytest.raises(OSError, match="disk full"):
        pictures.save_png(example[0], path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
