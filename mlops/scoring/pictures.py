"""Images: pixels of PNG and JPEG files, and the reader of rows that may come as such files.

Training decodes pictures with `decode_picture`, too. Pillow is imported when the first one comes.
"""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .errors import refuse
from .rows import Rows

MAX_PIXELS: Final = 89_478_485
"""Most pixels of a picture: Pillow's own limit. Decoding one takes about 1 GB for a moment."""

_PNG, _PNG_END, _JPEG = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82", b"\xff\xd8\xff"


def decode_picture(content: bytes, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Returns the pixels of a PNG or JPEG file, of shape (height, width, channels).

    Training and serving use this very function. The picture is turned as its EXIF orientation
    says. One of another size is brought to `shape` by Pillow's bilinear filter, which takes all
    pixels into account when it makes smaller. Of 16 bits a channel the upper 8 count.

    Args:
        content: The whole file. Of several pictures in one file the first counts.
        shape: With 1 channel the pixels are greyscale (ITU-R 601), with 3 RGB, with 4 RGBA. With 1
            or 3, what is transparent shows white.

    Raises:
        ValueError: The file is something else, damaged, cut off, or of more than `MAX_PIXELS`, or
            pictures do not have so many channels. The text holds nothing of the file.
    """
    from PIL import Image

    height, width, channels = shape
    if channels not in (1, 3, 4):
        raise ValueError(f"is a picture, which has 1, 3 or 4 channels, not {channels}")
    picture = _opened_picture(content)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    if picture.mode == "RGBA" and channels < 4:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    pixels = np.asarray(picture.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))
    return pixels.reshape(shape)


def _opened_picture(content: bytes) -> Any:
    """Returns the picture in one of the modes L, RGB and RGBA, turned upright."""
    from PIL import JpegImagePlugin, PngImagePlugin

    if content.startswith(_PNG):
        reader: Any = PngImagePlugin.PngImageFile
    elif content.startswith(_JPEG):
        reader = JpegImagePlugin.JpegImageFile
    else:
        raise ValueError("is neither a PNG nor a JPEG file")
    try:
        # Not Image.open: it warns of too many pixels where this refuses.
        picture = reader(io.BytesIO(content))
        n_pixels = math.prod(picture.size)
        if n_pixels <= MAX_PIXELS:
            picture.load()
            upright = _turned(_in_8_bits(picture), picture)
    except MemoryError:
        raise
    except Exception as err:  # of a damaged file Pillow raises about any type
        raise ValueError("is a damaged or incomplete PNG or JPEG file") from err
    if n_pixels > MAX_PIXELS:
        raise ValueError(f"is a picture of {n_pixels} pixels, more than {MAX_PIXELS}")
    if reader is PngImagePlugin.PngImageFile and _PNG_END not in content:  # Pillow lets it pass
        raise ValueError("is an incomplete PNG file")
    return upright


def _in_8_bits(picture: Any) -> Any:
    from PIL import Image

    if picture.mode.startswith("I"):  # grey of 16 bits; those of colours Pillow cuts itself
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    mode = "L" if picture.mode in ("1", "L") else "RGB"
    if picture.has_transparency_data:
        mode = "RGBA"
    return picture if picture.mode == mode else picture.convert(mode)


def _turned(pixels: Any, picture: Any) -> Any:
    """Returns `pixels` as the EXIF orientation of the file says that they are to be seen."""
    from PIL.Image import Transpose

    orientation = 1
    with contextlib.suppress(Exception):  # EXIF that cannot be read turns nothing, as in a browser
        orientation = picture.getexif().get(0x0112, 1)
    ways = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return pixels.transpose(ways[orientation]) if orientation in ways else pixels


class ImageRows(Rows):
    """Images: those of uint8 may come as files."""

    @property
    def expected(self) -> str:
        return super().expected + (", or PNG or JPEG files" if self.dtype.kind == "u" else "")

    def baseline(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Returns black images."""
        return np.zeros(rows.shape, np.float32)

    def _decoded(self, content: bytes, index: int) -> npt.NDArray[Any]:
        is_jpeg = content.startswith(_JPEG) and content.endswith(b"\xff\xd9")
        if not is_jpeg and not content.startswith(_PNG):
            return super()._decoded(content, index)
        if self.dtype.kind != "u":
            wrong = "is a PNG or JPEG file, but this model takes raw values only"
            refuse("wrong_type", wrong, index)
        height, width, channels = self.shape
        try:
            return decode_picture(content, (height, width, channels))
        except ValueError as err:
            refuse("not_an_image", str(err), index)
