"""Strict decoding of one image or mask file, and resizing: the exact pixels of the file, or an error that names it.

Pillow is lenient: it cuts 16-bit colours to 8 bits, takes the first of several pages, fills missing pixels with zeros
and ignores the file's extension, all without a warning. A network trained on such pixels would fail silently, so
the header is read first (by tifffile for TIFF) and everything unusual is refused.
"""

import io
import logging
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from data_pipeline.files import read_file
from data_pipeline.source import DataError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
MAX_SIDE = 8192
MODES = {1: "L", 3: "RGB", 4: "RGBA"}

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP"}
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
# The classes are called directly: `Image.open` tries every plugin, and warns about large images instead of refusing.
_DECODERS: dict[str, type[ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}

TIFF_LOSSLESS = {1: "none", 5: "LZW", 8: "deflate", 32946: "deflate", 32773: "PackBits", 34925: "LZMA", 50000: "Zstd"}
TIFF_LOSSY = {6: "JPEG", 7: "JPEG", 50001: "WebP"}

logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # it repairs and logs what is refused here


class _Header(NamedTuple):
    """What the header of a file states about its pixels."""

    bits: tuple[int, ...]  # per channel
    floats: bool = False
    lossy: bool = False
    orientation: int = 1  # as in EXIF; 1 is upright
    more_pages: bool = False
    pixels: np.ndarray | None = None  # uint8[H, W, C] of the plainest TIFF, which needs no decoder


def read_image(source: str | Path | bytes, *, name: str | None = None, channels: int = 3) -> np.ndarray:
    """Decodes an 8-bit image.

    Args:
      source: a path, or the bytes of a file.
      name: the file's name in messages; its extension, if any, must agree with the content. Default: the path.
      channels: 1 (grey), 3 (RGB) or 4 (RGBA); the file must hold exactly these.

    Returns:
      `uint8[H, W, channels]`, the values of the file.

    Raises:
      DataError: not a regular file; damaged or truncated; another format than its extension; several pages; not 8 bits
        per channel; other channels; a side of more than 8192 pixels; stored rotated (EXIF).
    """
    if channels not in MODES:
        raise DataError(f"image files hold 1, 3 or 4 channels, not {channels}: set model.image_channels")
    data, name = _load(source, name)
    expected = f"8-bit {'grey' if channels == 1 else MODES[channels]}"
    mode, _, decode = _open(data, name, expected)
    if mode != MODES[channels]:
        hint = "; for grey images set model.image_channels=1" if mode == "L" else ""
        raise DataError(f"expected {expected}, got mode={mode}: {name}{hint}")
    pixels = decode()
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def read_mask(source: str | Path | bytes, *, name: str | None = None, threshold: int | None = None) -> np.ndarray:
    """Decodes a mask.

    Args:
      source: a path, or the bytes of a file.
      name: as in `read_image`.
      threshold: a grey value; greater values are tumour. Without it only the values 0 and 255 are accepted.

    Returns:
      `uint8[H, W, 1]` in {0, 1}.

    Raises:
      DataError: as `read_image`; three channels that differ; without a threshold: other values than 0 and 255, or
        lossy compression, whose decoded values depend on the decoder.
    """
    data, name = _load(source, name)
    mode, lossy, decode = _open(data, name, "an 8-bit grey mask")
    if mode not in ("L", "RGB"):
        raise DataError(f"expected an 8-bit grey mask, got mode={mode}: {name}")
    if lossy and threshold is None:
        raise DataError(
            f"lossy mask (JPEG): its values are not exactly 0 and 255: {name}; "
            "store masks as PNG or TIFF, or set data.mask_threshold (for example 127)"
        )
    pixels = decode()
    if mode == "RGB":
        if not lossy and (np.any(pixels[:, :, 0] != pixels[:, :, 1]) or np.any(pixels[:, :, 0] != pixels[:, :, 2])):
            raise DataError(f"mask with three different channels, expected a grey mask: {name}")
        pixels = pixels[:, :, 0]
    if threshold is not None:
        return (pixels > threshold).astype(np.uint8)[:, :, None]
    mask = pixels >> 7
    if not np.array_equal(mask * np.uint8(255), pixels):
        values = np.unique(pixels)
        found = f"{len(values)} distinct values" if len(values) > 2 else "values " + " and ".join(map(str, values))
        raise DataError(
            f"mask has {found}, expected 0 and 255: {name}; set data.mask_threshold: greater values are tumour "
            f"(for example {0 if values[-1] == 1 else 127})"
        )
    return mask[:, :, None]


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes `uint8[H, W, C]` to `size` = (height, width), bilinear, antialiased where it shrinks."""
    if image.shape[:2] == tuple(size):
        return image
    height, width = size
    planes = [
        np.asarray(Image.fromarray(image[:, :, channel]).resize((width, height), Image.Resampling.BILINEAR))
        for channel in range(image.shape[2])
    ]
    return np.stack(planes, axis=-1)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes `uint8[H, W, 1]` to `size` = (height, width), nearest neighbour: no new values appear."""
    if mask.shape[:2] == tuple(size):
        return mask
    height, width = size
    return np.asarray(Image.fromarray(mask[:, :, 0]).resize((width, height), Image.Resampling.NEAREST))[:, :, None]


def fit_pair(
    image: np.ndarray, mask: np.ndarray, size: tuple[int, int] | None, *, resize: bool, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Brings an image and its mask to the size of the model.

    Args:
      image: `uint8[H, W, C]`.
      mask: `uint8[H, W, 1]`.
      size: (height, width), or None to keep the size of the file.
      resize: whether another size is resized rather than refused.
      name: the slice's name in messages.

    Raises:
      DataError: image and mask differ in size, or both differ from `size` while `resize` is off.
    """
    height, width = image.shape[:2]
    if mask.shape[:2] != (height, width):
        raise DataError(
            f"image of {height}x{width} but mask of {mask.shape[0]}x{mask.shape[1]} pixels (height x width): {name}"
        )
    if size is None or (height, width) == tuple(size):
        return image, mask
    if not resize:
        raise DataError(
            f"image of {height}x{width}, expected {size[0]}x{size[1]} pixels (height x width): {name}; set "
            "model.image_height and model.image_width, or data.resize to have images and masks resized"
        )
    return resize_image(image, size), resize_mask(mask, size)


def _load(source: str | Path | bytes, name: str | None) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        return source, name or "<bytes>"
    return read_file(source), name or str(source)


def _open(data: bytes, name: str, expected: str) -> tuple[str, bool, Callable[[], np.ndarray]]:
    """Checks the header; returns Pillow's mode, whether the file is lossy, and a function that decodes the pixels."""
    file_format = _sniff(data, name)
    header = (_tiff_header if file_format == "TIFF" else _other_header)(file_format, data, name)
    if (plainest := header.pixels) is not None:
        return MODES[plainest.shape[2]], False, lambda: plainest.squeeze(2) if plainest.shape[2] == 1 else plainest
    orientation = header.orientation
    plain = not header.floats and all(bit == 8 for bit in header.bits)
    depth = f"bits={','.join(map(str, header.bits))}{' float' if header.floats else ''}"
    try:
        image = _DECODERS[file_format](io.BytesIO(data))
        if "exif" in image.info and file_format != "TIFF":
            orientation = image.getexif().get(0x0112, 1)
        # Counting the pages of a TIFF takes time, and its header already shows whether there are more.
        pages = getattr(image, "n_frames", 1) if file_format != "TIFF" or header.more_pages else 1
    except Exception as error:  # decoders raise many types of errors on damaged bytes
        if not plain:
            raise DataError(f"expected {expected}, got {depth}: {name}") from error
        raise DataError(f"damaged {file_format} ({_reason(error)}): {name}") from error
    _check_size(image.width, image.height, name)
    if header.more_pages or pages > 1:
        raise DataError(f"{max(pages, 2)} pages, expected one image: {name}")
    if not plain:  # Pillow would cut 16 bits to 8, or clip
        raise DataError(f"expected {expected}, got mode={image.mode} {depth}: {name}")
    if orientation != 1:
        raise DataError(f"stored rotated (EXIF orientation {orientation}): {name}; save the pixels upright")
    return image.mode, header.lossy, lambda: _pixels(image, name)


def _sniff(data: bytes, name: str) -> str:
    if not data:
        raise DataError(f"empty file (0 bytes): {name}")
    found = next((label for signature, label in _SIGNATURES if data.startswith(signature)), None)
    named = _FORMATS.get(Path(name).suffix.lower())
    if data.startswith(b"version https://git-lfs"):
        raise DataError(f"a Git LFS pointer instead of the image: {name}; fetch the files with: git lfs pull")
    if found is None or (named and named != found):
        expected = f"not a {named}" if named else "neither PNG, JPEG, TIFF nor BMP"
        start = data[:4].decode("ascii", "backslashreplace")
        is_really = f"it is a {found}, rename it" if found else f"starts with {start!r}"
        raise DataError(f"{expected} ({is_really}): {name}")
    return found


def _other_header(file_format: str, data: bytes, name: str) -> _Header:
    """Reads the header of a PNG, JPEG or BMP, and refuses one whose end is cut off, which Pillow accepts."""
    try:
        if file_format == "PNG":
            if data.rfind(b"IEND\xaeB`\x82") <= data.rfind(b"IDAT"):
                raise DataError(f"truncated: {len(data)} bytes without the end of a PNG: {name}")
            width, height, bits = struct.unpack_from(">IIB", data, 16)
            _check_size(width, height, name)
            return _Header((bits,))
        if file_format == "JPEG":
            # Within the compressed pixels 0xff is always followed by 0 or a restart marker.
            if data.rfind(b"\xff\xd9") <= data.rfind(b"\xff\xda"):
                raise DataError(f"truncated: {len(data)} bytes without the end of a JPEG: {name}")
            return _Header((8,), lossy=True)
        (header_size,) = struct.unpack_from("<I", data, 14)
        (bits,) = struct.unpack_from("<H", data, 24 if header_size == 12 else 28)
        return _Header((8 if bits in (24, 32) else bits,))
    except struct.error as error:
        raise DataError(f"truncated: {len(data)} bytes do not hold the header of a {file_format}: {name}") from error


def _tiff_header(file_format: str, data: bytes, name: str) -> _Header:
    """Reads the header of a TIFF, and refuses one that lacks any byte that the header refers to."""
    if data.startswith(b"MM\0+"):  # Pillow takes it for an ordinary TIFF
        raise DataError(f"a BigTIFF of big-endian byte order is not supported: {name}; save it as an ordinary TIFF")
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page, layout = file.pages.first, file.tiff
            (count,) = struct.unpack_from(layout.tagnoformat, data, page.offset)
            first = page.offset + layout.tagnosize
            end = first + count * layout.tagsize + layout.offsetsize
            (next_page,) = struct.unpack_from(layout.offsetformat, data, end - layout.offsetsize)
            if len(page.tags) < count:  # tifffile leaves out tags whose values lie behind the end of the file
                for start in range(first, first + count * layout.tagsize, layout.tagsize):
                    tag = tifffile.TiffTag.fromfile(file, offset=start, validate=False)
                    end = max(end, tag.valueoffset + tag.valuebytecount if tag.valueoffset else 0)
    except Exception as error:  # as in _open
        reason = f"{len(data)} bytes do not hold the header of a TIFF ({_reason(error)})"
        raise DataError(f"truncated or damaged: {reason}: {name}") from error

    def values(code: int, default: int | None = None) -> tuple[int, ...]:
        value = page.tags.valueof(code, default)
        try:
            first, *rest = map(int, value if isinstance(value, Iterable) else (value,))
        except (TypeError, ValueError) as error:
            raise DataError(f"damaged TIFF (tag {code} is {value!r:.40}): {name}") from error
        return first, *rest

    if end > len(data):
        raise DataError(f"truncated: {len(data)} of {end} bytes: {name}")
    if len(page.tags.keys()) < len(page.tags):  # it is not defined which one counts
        raise DataError(f"damaged TIFF (a tag occurs twice): {name}")
    width, height, channels, compression = (values(*tag)[0] for tag in ((256,), (257,), (277, 1), (259, 1)))
    _check_size(width, height, name)
    bits, tiled = values(258, 1), 324 in page.tags
    offsets, sizes = (values(324), values(325)) if tiled else (values(273), values(279))
    if compression not in TIFF_LOSSLESS and compression not in TIFF_LOSSY:
        raise DataError(f"TIFF compression {compression} is not supported: {name}; save it as LZW or uncompressed")
    if len(offsets) != len(sizes):
        raise DataError(f"damaged TIFF ({len(offsets)} parts with {len(sizes)} sizes): {name}")
    if (end := max(map(sum, zip(offsets, sizes, strict=True)))) > len(data):
        raise DataError(f"truncated: {len(data)} of {end} bytes: {name}")
    expected = width * height * channels if compression == 1 and set(bits) == {8} and not tiled else 0
    if sum(sizes) < expected:
        raise DataError(f"truncated: {sum(sizes)} of {expected} bytes of pixels: {name}")
    header = _Header(
        bits=bits,
        floats=3 in values(339, 1),
        lossy=compression in TIFF_LOSSY,
        orientation=values(274, 1)[0],
        more_pages=next_page != 0,
    )
    # Decoding by Pillow takes longer than all the rest of reading, so uncompressed grey and RGB pixels are copied.
    colours = {1: 1, 3: 2}.get(channels)  # photometric interpretation: black is zero, RGB
    ordinary = {262: colours, 266: 1, 274: 1, 284: 1, 317: 1, 339: 1}
    rows = min(max(values(278, height)[0], 1), height)
    full_strips = all(size == rows * width * channels for size in sizes[:-1]) and len(sizes) == -(-height // rows)
    if (
        sum(sizes) == expected > 0
        and full_strips
        and len(bits) == channels
        and not next_page
        and 262 in page.tags
        and 338 not in page.tags  # extra channels
        and all(set(values(tag, 1)) == {value} for tag, value in ordinary.items())
    ):
        strips = (data[offset : offset + size] for offset, size in zip(offsets, sizes, strict=True))
        pixels = np.frombuffer(bytearray().join(strips), np.uint8).reshape(height, width, channels)
        return header._replace(pixels=pixels)
    return header


def _check_size(width: int, height: int, name: str) -> None:
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise DataError(f"image of {height}x{width} pixels (height x width), expected 1 to {MAX_SIDE} per side: {name}")


def _pixels(image: ImageFile.ImageFile, name: str) -> np.ndarray:
    try:
        return np.array(image)
    except Exception as error:  # as in _open
        raise DataError(f"damaged {image.format} ({_reason(error)}): {name}") from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
