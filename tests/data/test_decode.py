"""Every mode of Pillow, every orientation and the table of suffixes."""

import re

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, features

from regseg_jax.data import notices
from regseg_jax.data.decode import IMAGE_SUFFIXES, load_image, read_image_size, read_plain_png

HEIGHT, WIDTH = 9, 12
COLORS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
GREY_16 = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 606


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch):
    monkeypatch.setattr(notices, "_said", set())


def _grey(array):
    return np.repeat(np.asarray(array, np.uint8)[..., None], 3, axis=-1)


@pytest.mark.parametrize("size", [(9, 12), (1, 1)])
@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_one_bit(tmp_path, suffix, size):
    mask = np.random.default_rng(1).random(size) > 0.5
    Image.fromarray(mask).save(tmp_path / f"x.{suffix}")
    np.testing.assert_array_equal(load_image(tmp_path / f"x.{suffix}"), _grey(255 * mask))


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "pgm", "tga", "gif"])
def test_grey(tmp_path, suffix):
    Image.fromarray(COLORS[..., 0]).save(tmp_path / f"x.{suffix}")
    np.testing.assert_array_equal(load_image(tmp_path / f"x.{suffix}"), _grey(COLORS[..., 0]))


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "ppm", "tga", "qoi"])
def test_rgb(tmp_path, suffix):
    Image.fromarray(COLORS).save(tmp_path / f"x.{suffix}")
    np.testing.assert_array_equal(load_image(tmp_path / f"x.{suffix}"), COLORS)


@pytest.mark.parametrize("suffix", ["png", "tif", "gif"])
def test_palette(tmp_path, suffix):
    indices = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)
    palette = np.random.default_rng(2).integers(0, 256, (256, 3), np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(palette.ravel().tolist())
    image.save(tmp_path / f"x.{suffix}")
    np.testing.assert_array_equal(load_image(tmp_path / f"x.{suffix}"), palette[indices])


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBA"])
def test_alpha_is_ignored_and_that_is_said_once(tmp_path, mode, capsys):
    image = Image.fromarray(COLORS).convert({"LA": "L", "PA": "P", "RGBA": "RGB"}[mode])
    expected = np.asarray(image.convert("RGB"))
    with_alpha = image.convert(mode)
    for name, alpha in (("opaque", 255), ("clear", 0), ("half", 128)):
        with_alpha.putalpha(Image.new("L", image.size, alpha))
        with_alpha.save(tmp_path / f"{name}.tif")
        np.testing.assert_array_equal(load_image(tmp_path / f"{name}.tif"), expected)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: transparency is ignored")
    assert line.endswith("clear.tif)")  # an opaque image has none


def test_a_palette_with_an_alpha_for_each_entry_is_read_as_stored(tmp_path, capsys):
    image = Image.fromarray(np.arange(4, dtype=np.uint8).reshape(2, 2))
    palette = np.random.default_rng(2).integers(0, 256, (4, 3), np.uint8)
    image.putpalette(palette.ravel().tolist())
    image.save(tmp_path / "x.png", transparency=bytes((0, 128, 255, 255)))
    read = load_image(tmp_path / "x.png")  # with no warning, which would fail here
    np.testing.assert_array_equal(read, palette.reshape(2, 2, 3))
    assert "transparency is ignored" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_a_transparent_color_is_read_as_stored(tmp_path, mode, capsys):
    image = Image.fromarray(COLORS).convert(mode)
    key = tuple(COLORS[0, 0].tolist()) if mode == "RGB" else np.asarray(image)[0, 0].item()
    image.save(tmp_path / "x.png", transparency=key)
    np.testing.assert_array_equal(load_image(tmp_path / "x.png"), np.asarray(image.convert("RGB")))
    assert "transparency is ignored" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_color_spaces_that_pillow_converts(tmp_path, mode):
    image = Image.fromarray(COLORS).convert(mode)
    image.save(tmp_path / "x.tif")
    with Image.open(tmp_path / "x.tif") as opened:
        assert opened.mode == mode
    found = load_image(tmp_path / "x.tif").astype(int)
    assert np.abs(found - COLORS).max() <= 3  # of rounding


def test_hsv(monkeypatch, tmp_path):
    # No file format has this mode; a reader of Pillow's may give it.
    Image.fromarray(COLORS).save(tmp_path / "x.bmp")
    plain_open = Image.open

    def open_as_hsv(path):
        image = plain_open(path).convert("HSV")
        image.format, image.tile = "BMP", []
        return image

    monkeypatch.setattr(Image, "open", open_as_hsv)
    assert np.abs(load_image(tmp_path / "x.bmp").astype(int) - COLORS).max() <= 6


@pytest.mark.skipif(not features.check("littlecms2"), reason="Pillow without littleCMS")
def test_lab(tmp_path):
    colors = np.array([[(255, 0, 0), (0, 128, 0), (30, 60, 200), (128, 128, 128)]], np.uint8)
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(Image.fromarray(colors), srgb, lab, outputMode="LAB")
    image.save(tmp_path / "x.tif")
    with Image.open(tmp_path / "x.tif") as opened:
        assert opened.mode == "LAB"
    assert (
        np.abs(load_image(tmp_path / "x.tif").astype(int) - colors).max() <= 8
    )  # Lab of 8 bits is coarse


@pytest.mark.parametrize(
    ("suffix", "byte_order"), [("png", "<"), ("tif", "<"), ("tif", ">"), ("pgm", "<")]
)
def test_16_bit_grey_is_divided_by_256_and_that_is_said_once(tmp_path, suffix, byte_order, capsys):
    for name in ("x", "y"):
        path = tmp_path / f"{name}.{suffix}"
        Image.fromarray(GREY_16.astype(f"{byte_order}u2")).save(path)
        np.testing.assert_array_equal(load_image(path), _grey(GREY_16 >> 8))
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line
        == f"note: images of 16-bit grey are read as value >> 8 (such as {tmp_path}/x.{suffix})"
    )


def test_a_16_bit_pgm_of_fewer_values(tmp_path):
    content = (GREY_16 >> 4).astype(">u2").tobytes()
    (tmp_path / "x.pgm").write_bytes(b"P5 # 12 bits\n%d %d\n4095\n" % (WIDTH, HEIGHT) + content)
    expected = np.rint((GREY_16 >> 4) * (65535 / 4095)).astype(int) >> 8
    np.testing.assert_array_equal(load_image(tmp_path / "x.pgm"), _grey(expected))


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (GREY_16.astype(np.float32), "32-bit floats \\(mode F\\)"),
        (GREY_16.astype(np.int32), "32-bit integers \\(mode I\\)"),
    ],
)
def test_values_without_a_range_are_refused(tmp_path, array, kind):
    path = tmp_path / "x.tif"
    Image.fromarray(array).save(path)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} has values of {kind}.*8-bit PNG"):
        load_image(path)


def _save_turned(path, picture, orientation):
    """Stores a picture so that it looks as given once it is turned by its orientation."""
    turn = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, 1),
        7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
        8: lambda x: np.rot90(x, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.ascontiguousarray(turn(picture))).save(path, exif=exif, quality=100)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
def test_images_are_turned_upright(tmp_path, suffix, orientation):
    path = tmp_path / f"x.{suffix}"
    # Four flat quarters, which a lossy format keeps, and of which no two turns look the same.
    quarters = np.array([[(250, 10, 10), (10, 250, 10)], [(10, 10, 250), (250, 250, 250)]])
    picture = np.kron(quarters.astype(np.uint8), np.ones((16, 32, 1), np.uint8))
    _save_turned(path, picture, orientation)
    assert read_image_size(path) == picture.shape[:2]
    found = load_image(path)
    assert found.shape == picture.shape
    middles = (slice(8, None, 16), slice(16, None, 32))
    assert np.abs(found[middles].astype(int) - quarters).max() < 40


@pytest.mark.parametrize("orientation", range(1, 9))
def test_grey_tiff_files_are_turned_upright(tmp_path, orientation):
    # Pillow maps uncompressed ones into memory, and then gets the size wrong.
    _save_turned(tmp_path / "x.tif", COLORS[..., 0], orientation)
    np.testing.assert_array_equal(load_image(tmp_path / "x.tif"), _grey(COLORS[..., 0]))


def test_an_orientation_in_xmp_of_a_png(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    Image.fromarray(np.rot90(COLORS).copy()).save(tmp_path / "x.png", pnginfo=text)
    np.testing.assert_array_equal(load_image(tmp_path / "x.png"), COLORS)
    assert read_image_size(tmp_path / "x.png") == (HEIGHT, WIDTH)


def test_other_texts_of_a_png_cost_nothing(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", "a camera")
    Image.fromarray(COLORS).save(tmp_path / "x.png", pnginfo=text)
    np.testing.assert_array_equal(read_plain_png(tmp_path / "x.png", "RGB"), COLORS)


def test_the_size_of_a_png_needs_its_header_alone(tmp_path):
    Image.fromarray(COLORS).save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(content[:60])
    assert read_image_size(tmp_path / "x.png") == (HEIGHT, WIDTH)


def test_the_first_of_several_frames_is_read_and_that_is_said(tmp_path, capsys):
    frames = [Image.fromarray(np.roll(COLORS, i)) for i in range(3)]
    frames[0].save(tmp_path / "x.tif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(load_image(tmp_path / "x.tif"), COLORS)
    assert "only the first one is read" in capsys.readouterr().err


def test_suffixes_are_those_of_pictures():
    expected = {".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".mpo", ".tif", ".tiff", ".webp", ".bmp"}
    assert expected | {".ppm", ".pgm", ".pbm", ".gif", ".jp2", ".tga"} <= IMAGE_SUFFIXES
    assert not IMAGE_SUFFIXES & {".mpg", ".mpeg", ".h5", ".eps", ".ico", ".pcd", ".pdf", ".db"}


def test_no_limit_of_pixels(tmp_path):
    Image.new("1", (20000, 10000)).save(tmp_path / "x.png")  # Pillow's limit is 179 million
    assert read_image_size(tmp_path / "x.png") == (10000, 20000)
