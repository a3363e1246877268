"""The header of a TIFF file, read strictly: what Pillow guesses, repairs or ignores is an error here."""

import dataclasses
import struct

from data_pipeline.source import DataError

LOSSLESS = {1: "none", 5: "LZW", 8: "deflate", 32946: "deflate", 32773: "PackBits", 34925: "LZMA", 50000: "Zstandard"}
LOSSY = {6: "JPEG", 7: "JPEG", 50001: "WebP"}

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _ORIENTATION, _CHANNELS, _FORMAT = 256, 257, 258, 259, 274, 277, 339
_STRIP_OFFSETS, _STRIP_BYTES, _TILE_OFFSETS, _TILE_BYTES = 273, 279, 324, 325
_WANTED = {
    *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _ORIENTATION, _CHANNELS, _FORMAT),
    *(_STRIP_OFFSETS, _STRIP_BYTES, _TILE_OFFSETS, _TILE_BYTES),
}


@dataclasses.dataclass(frozen=True)
class Header:
    """What the one page of a TIFF says about its pixels.

    Attributes:
      width: columns.
      height: rows.
      bits: bits of each channel.
      float_samples: whether the values are floating point numbers.
      lossy: whether the pixels were compressed with loss.
      orientation: 1 for upright, as in EXIF.
    """

    width: int
    height: int
    bits: tuple[int, ...]
    float_samples: bool
    lossy: bool
    orientation: int


def read_header(data: bytes, name: str) -> Header:
    """Reads the header and checks that the file holds one page and every byte that the header promises.

    Args:
      data: the whole file.
      name: the file, for messages.

    Raises:
      DataError: damaged, cut short (even by one byte), several pages, an unknown compression.
    """
    if data.startswith(b"MM\0+"):  # Pillow takes it for a small TIFF
        raise DataError(f"a BigTIFF of big-endian byte order is not supported: {name}; save it as an ordinary TIFF")
    try:
        tags, next_page, end = _read_tags(data)
        if end > len(data):
            raise DataError(f"truncated: {len(data)} of {end} bytes: {name}")
        width, height = tags[_WIDTH][0], tags[_HEIGHT][0]
        channels = tags.get(_CHANNELS, (1,))[0]
        bits = tags.get(_BITS, (1,))
        compression = tags.get(_COMPRESSION, (1,))[0]
        tiled = _TILE_OFFSETS in tags
        offsets = tags[_TILE_OFFSETS if tiled else _STRIP_OFFSETS]
        counts = tags[_TILE_BYTES if tiled else _STRIP_BYTES]
    except (struct.error, OverflowError) as error:  # an offset behind the end, or beyond 64 bits
        raise DataError(f"truncated: {len(data)} bytes do not hold the header of a TIFF: {name}") from error
    except (KeyError, IndexError) as error:
        raise DataError(f"damaged TIFF (its header lacks tag {error}): {name}") from error
    if compression not in LOSSLESS and compression not in LOSSY:
        raise DataError(f"TIFF compression {compression} is not supported: {name}; save it as LZW or uncompressed")
    if not offsets or len(offsets) != len(counts):
        raise DataError(f"damaged TIFF ({len(offsets)} parts with {len(counts)} sizes): {name}")
    if (end := max(offset + count for offset, count in zip(offsets, counts, strict=True))) > len(data):
        raise DataError(f"truncated: {len(data)} of {end} bytes: {name}")
    if next_page:
        raise DataError(f"{_count_pages(data)} pages, expected one image: {name}")
    if compression == 1 and all(bit == 8 for bit in bits):
        expected = width * height * channels
        if not tiled and sum(counts) < expected:
            raise DataError(f"truncated: {sum(counts)} of {expected} bytes of pixels: {name}")
    return Header(
        width=width,
        height=height,
        bits=bits,
        float_samples=any(kind == 3 for kind in tags.get(_FORMAT, (1,))),
        lossy=compression in LOSSY,
        orientation=tags.get(_ORIENTATION, (1,))[0],
    )


def _layout(data: bytes) -> tuple[str, bool, int]:
    """Returns byte order, whether it is a BigTIFF, and where the first page's tags lie."""
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    return order, big, struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]


def _read_tags(data: bytes) -> tuple[dict[int, tuple[int, ...]], int, int]:
    """Returns the integer tags of the first page, the offset of the second, and the last byte that tags refer to."""
    order, big, start = _layout(data)
    word, entry_size = ("Q", 20) if big else ("I", 12)
    word_size = struct.calcsize(word)
    count = struct.unpack_from(order + ("Q" if big else "H"), data, start)[0]
    first = start + (8 if big else 2)
    (next_page,) = struct.unpack_from(order + word, data, first + count * entry_size)
    end = first + count * entry_size + word_size
    tags = {}
    for entry in range(first, first + count * entry_size, entry_size):
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        (length,) = struct.unpack_from(order + word, data, entry + 4)
        value = entry + 4 + word_size
        if (size := length * _SIZES.get(kind, 1)) > word_size:
            (value,) = struct.unpack_from(order + word, data, value)
            end = max(end, value + size)
        if tag in _WANTED and kind in _INTEGERS and size > 0 and value + size <= len(data):
            tags[tag] = struct.unpack_from(f"{order}{length}{_INTEGERS[kind]}", data, value)
    return tags, next_page, end


def _count_pages(data: bytes) -> int | str:
    order, big, offset = _layout(data)
    word, entry_size = ("Q", 20) if big else ("I", 12)
    seen: set[int] = set()
    try:
        while offset and offset not in seen and len(seen) < 1000:
            seen.add(offset)
            count = struct.unpack_from(order + ("Q" if big else "H"), data, offset)[0]
            (offset,) = struct.unpack_from(order + word, data, offset + (8 if big else 2) + count * entry_size)
    except (struct.error, OverflowError):
        return f"more than {len(seen) - 1}"
    return len(seen)
