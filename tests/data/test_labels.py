"""Labels are read as stored, whatever file holds them."""

import re
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from regseg_jax.data.classes import create_class_table
from regseg_jax.data.labels import load_raw_label, to_train_ids

HEIGHT, WIDTH = 6, 11  # of a width that does not fill whole bytes


def _values(bits):
    return np.resize(np.arange(2**bits), (HEIGHT, WIDTH)).astype(np.uint8)


def _save_grey(path, values, bits):
    """A grey file of this many bits per pixel, made of the palette file that Pillow writes."""
    if bits == 1:
        Image.fromarray(values.astype(bool)).save(path)
        return
    image = Image.fromarray(values)
    image.putpalette(bytes(range(2**bits)) * 3)
    image.save(path, bits=bits)
    content = path.read_bytes()
    # The header of a grey file, no palette, the same pixels.
    header = content[16:24] + bytes((bits, 0)) + content[26:29]
    chunks = [(b"IHDR", header), (b"IDAT", _find_chunk(content, b"IDAT")), (b"IEND", b"")]
    path.write_bytes(content[:8] + b"".join(_create_chunk(*chunk) for chunk in chunks))


def _find_chunk(content, kind):
    start = content.index(kind)
    return content[start + 4 : start + 4 + int.from_bytes(content[start - 4 : start], "big")]


def _create_chunk(kind, data):
    checksum = zlib.crc32(kind + data).to_bytes(4, "big")
    return len(data).to_bytes(4, "big") + kind + data + checksum


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_png_of_any_depth(tmp_path, bits):
    _save_grey(tmp_path / "x.png", _values(bits), bits)
    assert (tmp_path / "x.png").read_bytes()[24:26] == bytes((bits, 0))
    np.testing.assert_array_equal(load_raw_label(tmp_path / "x.png", "ids"), _values(bits))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "gif"])
def test_palette_indices_of_any_depth(tmp_path, bits, suffix):
    image = Image.fromarray(_values(bits))
    image.putpalette(np.random.default_rng(0).integers(0, 256, 3 * 2**bits).tolist())
    options = {"bits": bits} if suffix == "png" else {}
    image.save(tmp_path / f"x.{suffix}", **options)
    found = load_raw_label(tmp_path / f"x.{suffix}", "ids")
    if suffix != "gif":  # whose writer renumbers the palette
        np.testing.assert_array_equal(found, _values(bits))
    assert len(np.unique(found)) == len(np.unique(_values(bits)))


@pytest.mark.parametrize(
    ("suffix", "byte_order"), [("png", "<"), ("tif", "<"), ("tif", ">"), ("pgm", "<")]
)
def test_16_bits(tmp_path, suffix, byte_order):
    values = np.resize([0, 1, 300, 65535], (HEIGHT, WIDTH)).astype(f"{byte_order}u2")
    Image.fromarray(values).save(tmp_path / f"x.{suffix}")
    np.testing.assert_array_equal(load_raw_label(tmp_path / f"x.{suffix}", "ids"), values)


def test_32_bits(tmp_path):
    values = np.resize([0, 1, 300, 100_000], (HEIGHT, WIDTH)).astype(np.int32)
    Image.fromarray(values).save(tmp_path / "x.tif")
    np.testing.assert_array_equal(load_raw_label(tmp_path / "x.tif", "ids"), values)


@pytest.mark.parametrize("largest", [1, 7, 18, 254, 255, 1000, 65535])
@pytest.mark.parametrize("plain", [True, False])
def test_pgm_whatever_its_largest_value(tmp_path, largest, plain):
    values = np.resize(np.linspace(0, largest, 8).astype(int), (HEIGHT, WIDTH))
    kind, size = (b"P2" if plain else b"P5"), b"%d %d" % (WIDTH, HEIGHT)
    pixels = values.astype(">u2" if largest > 255 else np.uint8).tobytes()
    if plain:
        pixels = " ".join(map(str, values.ravel())).encode()
    (tmp_path / "x.pgm").write_bytes(
        b"%s\n# made by hand\n%s\n%d\n" % (kind, size, largest) + pixels
    )
    np.testing.assert_array_equal(load_raw_label(tmp_path / "x.pgm", "ids"), values)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_white_is_1_in_a_mask_of_one_bit(tmp_path, suffix):
    mask = np.random.default_rng(0).random((HEIGHT, WIDTH)) > 0.5
    Image.fromarray(mask).save(tmp_path / f"x.{suffix}")
    np.testing.assert_array_equal(load_raw_label(tmp_path / f"x.{suffix}", "ids"), mask)


def test_masks_of_0_and_255(tmp_path):
    mask = np.resize(np.array([0, 255, 255], np.uint8), (HEIGHT, WIDTH))
    Image.fromarray(mask).save(tmp_path / "x.png")
    raw = load_raw_label(tmp_path / "x.png", "ids")
    rows = ((0, "ground", (0, 0, 0), 0), (1, "thing", (1, 0, 0), 255))
    both = create_class_table("both", rows, ignored_label_ids=())
    assert to_train_ids(raw, both, "ids", "x")[0, :3].tolist() == [0, 1, 1]
    one = create_class_table("one", rows[:1])
    assert to_train_ids(raw, one, "ids", "x")[0, :3].tolist() == [0, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("label_format", ["ids", "colors"])
def test_labels_are_never_turned(tmp_path, suffix, orientation, label_format):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(_values(4)).save(tmp_path / f"x.{suffix}", exif=exif)
    found = load_raw_label(tmp_path / f"x.{suffix}", label_format)
    np.testing.assert_array_equal(found & 255, _values(4))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colors(tmp_path, mode):
    colors = np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH, 3), np.uint8) * 200
    image = Image.fromarray(colors)
    image = image.quantize(8) if mode == "P" else image.convert(mode)
    image.save(tmp_path / "x.png")
    red, green, blue = np.moveaxis(colors.astype(int), -1, 0)
    expected = (red << 16) + (green << 8) + blue
    np.testing.assert_array_equal(load_raw_label(tmp_path / "x.png", "colors"), expected)


@pytest.mark.parametrize("suffix", ["jpg", "jfif", "jp2", "webp"])
@pytest.mark.parametrize("label_format", ["ids", "train_ids", "colors"])
def test_lossy_formats_are_refused_with_what_they_hold(tmp_path, suffix, label_format):
    path = tmp_path / f"x.{suffix}"
    Image.new("RGB" if suffix == "webp" else "L", (8, 8), 30).save(path)
    held = "the colour" if suffix == "webp" else "the value 30"
    message = f"{re.escape(str(path))} is .*a lossy format.*holds {held}.* as PNG"
    with pytest.raises(ValueError, match=message):
        load_raw_label(path, label_format)


def test_a_picture_as_label_ids_is_refused_with_its_colors(tmp_path):
    colors = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    Image.fromarray(colors).save(tmp_path / "x.png")
    with pytest.raises(
        ValueError, match=r"mode RGB.*20 colours such as \(0, 1, 2\), \(3, 4, 5\).*label_format"
    ):
        load_raw_label(tmp_path / "x.png", "ids")


@pytest.mark.parametrize("mode", ["LA", "F", "CMYK"])
def test_other_modes_are_refused_by_name(tmp_path, mode):
    Image.fromarray(_values(8)).convert(mode).save(tmp_path / "x.tif")
    for label_format in ("ids", "colors"):
        with pytest.raises(ValueError, match=rf"x\.tif.* mode {mode}"):
            load_raw_label(tmp_path / "x.tif", label_format)


def test_white_that_is_stored_as_0_is_refused(tmp_path):
    Image.fromarray(_values(8)).save(tmp_path / "x.tif", tiffinfo={262: 0})
    with pytest.raises(ValueError, match=r"mode L, stored as L;I"):
        load_raw_label(tmp_path / "x.tif", "ids")


def test_unknown_values_are_listed_as_stored(tmp_path):
    _save_grey(tmp_path / "x.png", _values(4), 4)
    table = create_class_table("two", [(i, f"c{i}", (i, 0, 0), i) for i in range(2)])
    raw = load_raw_label(tmp_path / "x.png", "ids")
    with pytest.raises(
        ValueError, match=r"values \[2, 3, 4, 5, 6, 7, 8, 9\] and 6 more that .*'two'"
    ):
        to_train_ids(raw, table, "ids", "x.png")


def test_label_ids_of_more_than_8_bits():
    table = create_class_table("far", ((0, "a", (0, 0, 0), 300), (1, "b", (1, 0, 0), 65535)))
    raw = np.array([[300, 65535, 255]], np.uint16)
    assert to_train_ids(raw, table, "ids", "x").tolist() == [[0, 1, 255]]
    with pytest.raises(ValueError, match=r"from 0 to 16777215"):
        create_class_table("farther", ((0, "a", (0, 0, 0), 2**24),))
