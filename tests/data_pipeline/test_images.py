"""Decoding is exact or refused with a message that names the file, what was found and what to do."""

import io
import logging
import os
import struct
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from data_pipeline.images import fit_pair, read_image, read_mask, resize_image, resize_mask
from data_pipeline.source import DataError
from tests.helpers.trees import encode, image_pixels, mask_pixels

PIXELS = image_pixels(0, (12, 20))
MASK = mask_pixels(0, (12, 20))


def big_endian_tiff(pixels: np.ndarray, *, planar: bool = False) -> bytes:
    """Writes an uncompressed TIFF by hand, as Pillow writes little-endian ones of interleaved channels only."""
    height, width, _ = pixels.shape
    planes = [pixels[:, :, channel].tobytes() for channel in range(3)] if planar else [pixels.tobytes()]
    tags: list[tuple[int, str, list[int]]] = [
        (256, "I", [width]),
        (257, "I", [height]),
        (258, "H", [8, 8, 8]),
        (259, "H", [1]),
        (262, "H", [2]),
        (273, "I", [0] * len(planes)),
        (277, "H", [3]),
        (278, "I", [height]),
        (279, "I", [len(plane) for plane in planes]),
        (284, "H", [2 if planar else 1]),
    ]
    extra_at = 8 + 2 + 12 * len(tags) + 4
    extra_size = sum(struct.calcsize(kind) * len(values) for _, kind, values in tags if len(values) > 1)
    starts = np.cumsum([extra_at + extra_size, *map(len, planes)])[:-1].tolist()
    entries, extra = b"", b""
    for tag, kind, values in tags:
        data = struct.pack(f">{len(values)}{kind}", *(starts if tag == 273 else values))
        if len(data) > 4:
            data, extra = struct.pack(">I", extra_at + len(extra)), extra + data
        entries += struct.pack(">HHI4s", tag, {"H": 3, "I": 4}[kind], len(values), data)
    header = b"MM\0*" + struct.pack(">IH", 8, len(tags))
    return header + entries + struct.pack(">I", 0) + extra + b"".join(planes)


LOSSLESS = {
    "raw.tif": encode(PIXELS),
    "lzw.tif": encode(PIXELS, compression="tiff_lzw"),
    "deflate.tif": encode(PIXELS, compression="tiff_adobe_deflate"),
    "packbits.tif": encode(PIXELS, compression="packbits"),
    "many strips.tif": encode(PIXELS, tiffinfo={278: 3}, compression="tiff_lzw"),
    "strips.tif": encode(PIXELS, tiffinfo={278: 5}),
    "big endian.tif": big_endian_tiff(PIXELS),
    "big.tiff": encode(PIXELS, big_tiff=True),
    "planar.tif": big_endian_tiff(PIXELS, planar=True),
    "a.PNG": encode(PIXELS, "PNG"),
    "a.bmp": encode(PIXELS, "BMP"),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_files_decode_to_exactly_the_pixels_that_were_written(name):
    decoded = read_image(LOSSLESS[name], name=name)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, PIXELS)


@pytest.mark.parametrize(("tag", "value"), [(262, 1), (262, 0), (278, 5), (278, 1), (284, 1)])
def test_uncompressed_pixels_are_those_that_pillow_decodes(tag, value):
    # White is zero, and rows per strip that do not fit the one strip: left to Pillow. The others are copied.
    data = with_tag(encode(PIXELS[:, :, :1]), tag, (value,))
    np.testing.assert_array_equal(read_image(data, channels=1)[:, :, 0], np.asarray(Image.open(io.BytesIO(data))))


def test_a_path_a_string_and_bytes_give_the_same_image(tmp_path):
    path = tmp_path / "ä b.tif"
    path.write_bytes(LOSSLESS["raw.tif"])
    for source in (path, str(path), path.read_bytes()):
        np.testing.assert_array_equal(read_image(source), PIXELS)


def test_jpeg_images_decode_close_to_what_was_written():
    smooth = np.broadcast_to(np.arange(0, 160, 8, dtype=np.uint8)[None, :, None], PIXELS.shape)
    decoded = read_image(encode(smooth, "JPEG", quality=95), name="a.jpeg")
    assert np.abs(decoded.astype(int) - smooth).max() < 8


def test_one_and_four_channels_are_read_when_asked_for():
    grey = encode(PIXELS[:, :, :1])
    assert read_image(grey, channels=1).shape == (12, 20, 1)
    rgba = np.concatenate([PIXELS, PIXELS[:, :, :1]], axis=-1)
    np.testing.assert_array_equal(read_image(encode(rgba, "PNG"), channels=4), rgba)
    with pytest.raises(DataError, match="1, 3 or 4 channels, not 2"):
        read_image(grey, channels=2)


def pil(mode: str) -> Image.Image:
    return Image.fromarray(PIXELS).convert(mode)


def saved(image: Image.Image, picture_format: str = "TIFF", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, picture_format, **options)
    return buffer.getvalue()


def sixteen_bit_png() -> bytes:
    """A 16-bit RGB PNG, which Pillow reads as 8-bit RGB without a word."""
    rows = np.zeros((4, 1 + 4 * 6), np.uint8)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def with_tag(data: bytes, tag: int, values: tuple[int, ...]) -> bytes:
    """Overwrites a tag of SHORTs in a little-endian TIFF."""
    start = struct.unpack_from("<I", data, 4)[0]
    changed = bytearray(data)
    for index in range(struct.unpack_from("<H", data, start)[0]):
        at = start + 2 + 12 * index
        found, kind, count = struct.unpack_from("<HHI", data, at)
        if found == tag:
            where = at + 8 if count * 2 <= 4 else struct.unpack_from("<I", data, at + 8)[0]
            struct.pack_into(f"<{count}{'I' if kind == 4 else 'H'}", changed, where, *values)
            return bytes(changed)
    raise AssertionError(f"no tag {tag}")


def wide_rgb_tiff() -> bytes:
    """A 16-bit RGB TIFF, which Pillow reads as 8-bit RGB without a word."""
    doubled = np.repeat(PIXELS, 2, axis=1)
    return with_tag(with_tag(encode(doubled), 258, (16, 16, 16)), 256, (PIXELS.shape[1],))


WRONG = {
    "16-bit grey": (saved(Image.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 257)), r"got mode=I;16 bits=16"),
    "16-bit RGB": (wide_rgb_tiff(), r"bits=16,16,16"),
    "float": (saved(Image.fromarray(PIXELS[:, :, 0].astype(np.float32))), r"got mode=F bits=32 float"),
    "palette": (saved(pil("P")), r"got mode=P"),
    "RGBA": (saved(pil("RGBA")), r"got mode=RGBA"),
    "CMYK": (saved(pil("CMYK")), r"got mode=CMYK"),
    "1-bit": (saved(pil("1")), r"got mode=1 bits=1"),
    "LAB": (saved(pil("LAB")), r"got mode=LAB"),
    "grey": (saved(pil("L")), r"expected 8-bit RGB, got mode=L.*model.image_channels=1"),
    "PNG 16-bit": (sixteen_bit_png(), r"bits=16"),
    "PNG palette": (saved(pil("P"), "PNG"), r"got mode=P"),
    "JPEG CMYK": (saved(pil("CMYK"), "JPEG"), r"got mode=CMYK"),
    "BMP 1-bit": (saved(pil("1"), "BMP"), r"bits=1"),
    "two pages": (saved(pil("RGB"), save_all=True, append_images=[pil("RGB")]), r"2 pages, expected one image"),
    "animated PNG": (saved(pil("RGB"), "PNG", save_all=True, append_images=[pil("RGB").rotate(180)]), "2 pages"),
    "rotated": (saved(pil("RGB"), tiffinfo={274: 6}), r"EXIF orientation 6.*upright"),
    "big-endian BigTIFF": (b"MM\0+" + bytes(64), "BigTIFF of big-endian byte order is not supported"),
    "old compression": (with_tag(encode(PIXELS), 259, (2,)), "compression 2 is not supported"),
    "no pixels": (with_tag(encode(PIXELS), 257, (0,)), "0x20 pixels"),
    "taller than its pixels": (with_tag(encode(PIXELS), 257, (13,)), "truncated: 720 of 780 bytes of pixels"),
}


@pytest.mark.parametrize("case", WRONG)
def test_other_than_plain_8_bit_pictures_are_refused_by_name(case):
    data, message = WRONG[case]
    with pytest.raises(DataError, match=message) as caught:
        read_image(data, name="folder/x")
    assert "folder/x" in str(caught.value)


def doubled_tag(data: bytes, tag: int, value: int) -> bytes:
    """Repeats a tag of a little-endian TIFF with another value, in a second list of tags at the end of the file."""
    start = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, start)[0]
    entries = data[start + 2 : start + 2 + 12 * count] + struct.pack("<HHIHH", tag, 3, 1, value, 0)
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + struct.pack("<H", count + 1) + entries + bytes(4)


def test_a_tag_that_occurs_twice_is_refused():
    data = doubled_tag(LOSSLESS["raw.tif"], 256, 10)
    with pytest.raises(DataError, match=r"damaged TIFF .a tag occurs twice.: a\.tif"):
        read_image(data, name="a.tif")


@pytest.mark.parametrize("silent", [True, False])
def test_tifffile_writes_nothing_to_the_log_by_default(silent, caplog, capfd):
    logger = logging.getLogger("tifffile")
    before = logger.level
    logger.setLevel(before if silent else logging.WARNING)
    try:
        read_image(with_tag(LOSSLESS["raw.tif"], 278, (1,)), name="a.tif")  # rows per strip do not fit the one strip
    finally:
        logger.setLevel(before)
    assert bool(caplog.records) != silent
    assert capfd.readouterr() == ("", "")


def test_pillow_alone_would_have_cut_16_bit_colours_to_8():
    assert Image.open(io.BytesIO(wide_rgb_tiff())).mode == "RGB"
    assert Image.open(io.BytesIO(sixteen_bit_png())).mode == "RGB"


def test_a_rotated_jpeg_is_refused():
    exif = Image.Exif()
    exif[0x0112] = 3
    with pytest.raises(DataError, match="orientation 3"):
        read_image(saved(pil("RGB"), "JPEG", exif=exif), name="a.jpg")


@pytest.mark.parametrize("name", [*LOSSLESS, "a.jpg"])
def test_every_file_that_lacks_its_end_is_refused(name):
    data = LOSSLESS.get(name) or encode(PIXELS, "JPEG")
    for length in (1, 5, len(data) // 3, len(data) // 2, len(data) - 2, len(data) - 1):
        with pytest.raises(DataError, match=f"{name}"):
            read_image(data[:length], name=name)


def test_a_truncated_tiff_says_how_many_bytes_are_missing():
    data = LOSSLESS["raw.tif"]
    with pytest.raises(DataError, match=rf"truncated: {len(data) - 1} of {len(data)} bytes: a\.tif"):
        read_image(data[:-1], name="a.tif")


def test_a_tiff_whose_description_at_the_end_is_cut_is_refused():
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[270] = "a description that is stored after the pixels, or before"
    data = encode(PIXELS, tiffinfo=info)
    start = struct.unpack_from("<I", data, 4)[0]
    moved = bytearray(data)
    for index in range(struct.unpack_from("<H", data, start)[0]):
        at = start + 2 + 12 * index
        if struct.unpack_from("<H", data, at)[0] == 270:
            count, old = struct.unpack_from("<II", data, at + 4)
            struct.pack_into("<I", moved, at + 8, len(data))
            moved += data[old : old + count]
    np.testing.assert_array_equal(read_image(bytes(moved)), PIXELS)
    with pytest.raises(DataError, match=f"truncated: {len(moved) - 1} of {len(moved)} bytes"):
        read_image(bytes(moved[:-1]))


MISNAMED = {
    "a PNG": (encode(PIXELS, "PNG"), "not a TIFF .it is a PNG, rename it"),
    "a web page": (b"<!DOCTYPE html><html></html>", "not a TIFF .starts with '<!DO'"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "nothing": (b"", "empty file .0 bytes"),
}


@pytest.mark.parametrize("case", MISNAMED)
def test_a_tif_that_is_something_else_is_told_what_it_is(case, tmp_path):
    data, message = MISNAMED[case]
    path = tmp_path / "x.tif"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.tif")
    (tmp_path / "link.tif").symlink_to(tmp_path / "nowhere.tif")
    (tmp_path / "folder.tif").mkdir()
    caught = []

    def read_all():
        for name in ("pipe.tif", "link.tif", "folder.tif", "missing.tif"):
            try:
                read_image(tmp_path / name)
            except DataError as error:
                caught.append(str(error))

    reader = threading.Thread(target=read_all, daemon=True)
    reader.start()
    reader.join(5)
    assert not reader.is_alive(), "waits for a writer"
    assert [("pipe" in m, "link" in m, "folder" in m, "missing" in m).index(True) for m in caught] == [0, 1, 2, 3]


def test_a_compressed_bomb_is_refused_by_its_header():
    data = with_tag(
        with_tag(encode(np.zeros((16, 16, 3), np.uint8), compression="tiff_lzw"), 256, (10_000,)), 257, (10_000,)
    )
    with pytest.raises(DataError, match=r"10000x10000 pixels .height x width.*1 to 8192"):
        read_image(data)
    png = bytearray(encode(PIXELS, "PNG"))
    struct.pack_into(">II", png, 16, 50_000, 50_000)
    with pytest.raises(DataError, match="50000x50000"):
        read_image(bytes(png))


@pytest.mark.parametrize("name", ["raw.tif", "lzw.tif", "big.tiff", "a.PNG", "a.bmp", "a.jpg"])
def test_damaged_bytes_give_an_image_or_a_data_error_and_nothing_else(name):
    rng = np.random.default_rng(0)
    original = LOSSLESS.get(name) or encode(PIXELS, "JPEG")
    refused = 0
    for _ in range(300):
        data = bytearray(original)
        for _ in range(rng.integers(1, 5)):
            # Half of the damage goes to the first bytes, where headers are.
            at = rng.integers(0, len(data) if rng.random() < 0.5 else min(len(data), 64))
            data[at] = rng.integers(0, 256)
        try:
            assert read_image(bytes(data), name=name).dtype == np.uint8
        except DataError:
            refused += 1
    assert refused > 0


def test_a_mask_becomes_zero_and_one():
    for data in (encode(MASK), encode(MASK, "PNG"), encode(MASK, "BMP"), encode(np.stack([MASK] * 3, -1))):
        mask = read_mask(data)
        assert mask.shape == (12, 20, 1) and mask.dtype == np.uint8
        np.testing.assert_array_equal(mask[:, :, 0], MASK > 0)


def test_a_mask_of_0_and_1_needs_a_threshold():
    with pytest.raises(DataError, match=r"values 0 and 1, expected 0 and 255: m\.png; set data\.mask.*example 0"):
        read_mask(encode(MASK // 255, "PNG"), name="m.png")
    np.testing.assert_array_equal(read_mask(encode(MASK // 255, "PNG"), threshold=0)[:, :, 0], MASK > 0)


def test_a_grey_mask_needs_a_threshold_and_greater_values_are_tumour():
    grey = np.zeros((12, 20), np.uint8)
    grey.ravel()[:37] = np.arange(37)
    with pytest.raises(DataError, match=r"mask has 37 distinct values.*m\.tif; set data\.mask_threshold"):
        read_mask(encode(grey), name="m.tif")
    np.testing.assert_array_equal(read_mask(encode(grey), threshold=30)[:, :, 0], grey > 30)


@given(st.integers(1, 254))
@settings(max_examples=25, deadline=None)
def test_any_single_value_besides_0_and_255_is_noticed(value):
    mask = MASK.copy()
    mask[-1, -1] = value
    with pytest.raises(DataError, match="mask has 3 distinct values"):
        read_mask(encode(mask))


def test_a_coloured_mask_is_refused():
    coloured = np.stack([MASK, MASK, np.zeros_like(MASK)], -1)
    with pytest.raises(DataError, match="three different channels"):
        read_mask(encode(coloured, "PNG"), name="m.png")


@pytest.mark.parametrize("data", [encode(MASK, "JPEG"), encode(MASK, compression="jpeg")], ids=["jpg", "tif"])
def test_a_lossy_mask_needs_a_threshold(data):
    with pytest.raises(DataError, match=r"lossy mask .JPEG.*data.mask_threshold"):
        read_mask(data)
    assert set(np.unique(read_mask(data, threshold=127))) == {0, 1}


def test_sixteen_bit_and_palette_masks_are_refused():
    for image, mode in ((Image.fromarray(MASK.astype(np.uint16)), "I;16"), (Image.fromarray(MASK).convert("P"), "P")):
        with pytest.raises(DataError, match=f"expected an 8-bit grey mask, got mode={mode}"):
            read_mask(saved(image))


def test_sizes_are_height_then_width():
    image, mask = fit_pair(PIXELS, (MASK > 0).astype(np.uint8)[:, :, None], (6, 40), resize=True, name="x")
    assert image.shape == (6, 40, 3) and mask.shape == (6, 40, 1)


def test_another_size_is_refused_with_both_sizes_unless_resizing_is_on():
    mask = np.zeros((12, 20, 1), np.uint8)
    with pytest.raises(DataError, match=r"12x20, expected 16x16.*height x width.*: x; .*data.resize"):
        fit_pair(PIXELS, mask, (16, 16), resize=False, name="x")
    image, _ = fit_pair(PIXELS, mask, None, resize=False, name="x")
    assert image is PIXELS


def test_image_and_mask_of_different_size_are_refused():
    with pytest.raises(DataError, match="image of 12x20 but mask of 20x12 pixels"):
        fit_pair(PIXELS, np.zeros((20, 12, 1), np.uint8), None, resize=True, name="x")


def test_masks_resize_to_the_nearest_and_images_to_the_mean():
    board = (np.indices((8, 8)).sum(0) % 2).astype(np.uint8)
    assert set(np.unique(resize_mask(board[:, :, None], (5, 11)))) == {0, 1}
    image = np.repeat(board[:, :, None] * np.uint8(200), 3, axis=2)
    np.testing.assert_allclose(resize_image(image, (2, 2)), 100, atol=8)


@pytest.mark.parametrize("size", [(16, 20), (5, 3), (2, 11)])
def test_a_mask_resizes_to_the_pixels_below_the_centres(size):
    mask = np.random.default_rng(0).integers(0, 2, (8, 9, 1), np.uint8)
    rows, columns = (((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, (8, 9), strict=True))
    np.testing.assert_array_equal(resize_mask(mask, size), mask[rows][:, columns])
