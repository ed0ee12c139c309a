"""Image files as RGB arrays: the one place that decides suffixes, modes and orientation.

Every file is read as people see it: turned upright as its EXIF orientation says. What becomes of
each of Pillow's modes:

    1, L, P, RGB, CMYK, YCbCr, HSV  RGB, as Pillow converts
    LAB                             sRGB, by littleCMS
    LA, PA, RGBA                    the colours as stored, transparency ignored; said once
    16-bit grey (I;16 and so on)    value >> 8 in three equal channels; said once
    F, other I                      refused: their range is not known

Labels are not images: `labels.py` reads them as stored.
"""

import io
import os
import struct
from typing import BinaryIO, Literal, NamedTuple

import imagecodecs
import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from regseg_jax.data.notices import say_once

# To be raised by whoever changes what a file decodes to: files made from decoded ones (the cache,
# the centroids) are then made again.
DECODER_VERSION = 2

# The user's own files: a large one is not an attack. Pillow would refuse 179 million pixels.
Image.MAX_IMAGE_PIXELS = None

# Formats of Pillow that are not raster images, or that other programs use the suffixes of.
_NOT_IMAGES = {
    *("BUFR", "GRIB", "HDF5", "IPTC"),  # data
    *("EPS", "WMF"),  # vectors, drawn by other programs
    *("FLI", "MPEG"),  # video
    *("CUR", "ICNS", "ICO"),  # icons
    *("GBR", "PCD"),  # as suffixes mostly circuit boards and point clouds
}

# The suffixes of image files, in lower case. Pillow registers `.mpo` for writing alone.
IMAGE_SUFFIXES = frozenset(
    suffix
    for suffix, name in (Image.registered_extensions() | {".mpo": "JPEG"}).items()
    if name in Image.OPEN and name not in _NOT_IMAGES
)

# EXIF orientations: what turns the stored picture upright, and what turns it back.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BACK = {**_UPRIGHT, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}

# Modes that Pillow converts to RGB in one step or, with premultiplied colours, in two.
_PLAIN_MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV")
_ALPHA_MODES = {"LA": "LA", "PA": "RGBA", "RGBA": "RGBA", "La": "LA", "RGBa": "RGBA"}
_REFUSED_MODES = {"F": "32-bit floats", "I": "32-bit integers"}

# Of PNG files: bit depth and colour type in the header, and the shape that follows from them.
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_HEADERS = {"L": bytes((8, 0)), "RGB": bytes((8, 2))}
_PNG_CHANNELS = {"L": (), "RGB": (3,)}
# Where an orientation may be: a chunk, and the keywords of text chunks.
_PNG_EXIF, _PNG_TEXTS = b"eXIf", (b"iTXt", b"tEXt", b"zTXt")
_PNG_KEYWORDS = (b"XML:com.adobe.xmp", b"Raw profile type exif")


class StoredFile(NamedTuple):
    """An image or label file inside a larger file.

    Attributes:
      name: for messages.
      data: the file's bytes.
    """

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


ImageFile = str | os.PathLike | StoredFile


def open_file(file: ImageFile) -> BinaryIO:
    """Opens a file to read its bytes."""
    return io.BytesIO(file.data) if isinstance(file, StoredFile) else open(file, "rb")


class OpenedImage(NamedTuple):
    """An image file.

    Attributes:
      image: loaded, not turned; of TIFF files, which Pillow turns itself, upright.
      format: PNG, JPEG and so on.
      raw_mode: how the file stores the values, such as `L;4`; the mode where it is not known.
      orientation: of EXIF, 1 to 8.
    """

    image: Image.Image
    format: str
    raw_mode: str
    orientation: int

    def upright(self) -> Image.Image:
        """The picture as people see it."""
        return self._turn(_UPRIGHT, self.format != "TIFF")

    def as_stored(self) -> Image.Image:
        """The picture without regard to the orientation."""
        return self._turn(_BACK, self.format == "TIFF")

    def _turn(self, turns: dict[int, Image.Transpose], needed: bool) -> Image.Image:
        turned = needed and self.orientation in turns
        return self.image.transpose(turns[self.orientation]) if turned else self.image


def load_image(path: ImageFile) -> np.ndarray:
    """Reads an image file as uint8[H, W, 3], upright.

    Raises:
      ValueError: if it is not an image, is truncated, cannot be opened, or has no range of values.
    """
    image = read_plain_png(path, "RGB")
    if image is not None:
        return image
    opened = open_image(path)
    return np.asarray(opened._replace(image=_to_rgb(opened, path)).upright())


def read_image_size(path: ImageFile) -> tuple[int, int]:
    """Height and width of an image file as `load_image` reads it, from its header alone.

    Raises:
      ValueError: if it is not an image or cannot be opened.
    """
    opened = open_image(path, load=False)
    width, height = opened.image.size
    if opened.format != "TIFF" and opened.orientation >= 5:  # is on its side
        return width, height
    return height, width


def open_image(path: ImageFile, load: bool = True) -> OpenedImage:
    """Opens an image file.

    Args:
      path: of the file; of several frames the first is read, which is said once.
      load: whether to read the pixels too, not the header alone.

    Raises:
      ValueError: if it is not an image, is truncated or cannot be opened.
    """
    try:
        # From an open file, for what Pillow maps into memory by its name it misreads in TIFF files
        # that are on their side.
        with open_file(path) as file:
            # Pillow would decode all of a PNG file to look for an orientation.
            may_be_turned = load or not _is_png(file) or _has_png_metadata(file)
            file.seek(0)
            image = Image.open(file)
            raw_mode = _get_raw_mode(image)
            # Before the pixels are loaded: Pillow then forgets that of a TIFF file.
            orientation = _read_orientation(image) if may_be_turned else 1
            if load:
                image.load()
            has_frames = getattr(image, "is_animated", False) and image.format != "MPO"
    except UnidentifiedImageError:
        raise ValueError(
            f"cannot read {path}: no image format is recognised; restore the file or take it out "
            "of the data set"
        ) from None
    except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"cannot read {path}: {reason}; restore the file or take it out of the data set"
        ) from None
    if has_frames:
        say_once("of files with several frames or pages only the first one is read", path)
    return OpenedImage(image, image.format, raw_mode, orientation)


def _get_raw_mode(image: Image.Image) -> str:
    args = image.tile[0].args if image.tile else None
    if isinstance(args, tuple) and args:
        args = args[0]
    return args if isinstance(args, str) else image.mode


def _read_orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (ValueError, SyntaxError, TypeError, KeyError, struct.error):
        return 1  # EXIF data that are damaged say nothing
    return orientation if orientation in _UPRIGHT else 1


def _is_png(file: io.BufferedIOBase) -> bool:
    file.seek(0)
    return file.read(len(_PNG_SIGNATURE)) == _PNG_SIGNATURE


def _has_png_metadata(file: io.BufferedIOBase) -> bool:
    """Whether a chunk of the file may hold an orientation."""
    file.seek(len(_PNG_SIGNATURE))
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        start = file.tell()
        if kind == _PNG_EXIF or (kind in _PNG_TEXTS and file.read(32).startswith(_PNG_KEYWORDS)):
            return True
        file.seek(start + length + 4)  # past the checksum
    return False


def read_plain_png(path: ImageFile, mode: Literal["L", "RGB"]) -> np.ndarray | None:
    """Decodes a PNG of 8 bits a channel in half of Pillow's time.

    Returns:
      What Pillow gives; None for a file of another kind, one that may have an orientation, and
      one that cannot be read, which Pillow then explains.
    """
    try:
        with open_file(path) as file:
            data = file.read()
        if data[:8] != _PNG_SIGNATURE or data[24:26] != _PNG_HEADERS[mode]:
            return None
        if _has_png_metadata(io.BytesIO(data)):
            return None
        array = imagecodecs.png_decode(data)
    except (OSError, imagecodecs.PngError):
        return None
    return array if array.shape[2:] == _PNG_CHANNELS[mode] else None  # transparency adds one


def _to_rgb(opened: OpenedImage, path: ImageFile) -> Image.Image:
    image = opened.image
    if image.mode in _PLAIN_MODES:
        # Taken out of the image, for Pillow warns of what it would do with it.
        transparency = image.info.pop("transparency", None)
        if transparency is not None and image.mode in ("L", "P", "RGB"):
            _say_transparent(path)
        return image.convert("RGB")
    if image.mode in _ALPHA_MODES:
        image = image.convert(_ALPHA_MODES[image.mode])
        if image.getchannel("A").getextrema()[0] < 255:
            _say_transparent(path)
        return image.convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    # Of 32-bit integers, only what Pillow makes of 16-bit files has a known range.
    if image.mode.startswith("I;16") or (image.mode == "I" and opened.format in ("PNG", "PPM")):
        bits = 12 if opened.raw_mode == "I;12" else 16
        say_once(f"images of {bits}-bit grey are read as value >> {bits - 8}", path)
        return Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8)).convert("RGB")
    kind = _REFUSED_MODES.get(image.mode, "another kind")
    raise ValueError(
        f"{path} has values of {kind} (mode {image.mode}), whose range is not known; scale them "
        "to 0 to 255 and save it as an 8-bit PNG"
    )


def _say_transparent(path: ImageFile) -> None:
    say_once("transparency is ignored: the colours stored under it are read", path)
