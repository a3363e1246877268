"""Writes the folders of the reference: `OUT/{train,test}/{image,mask}` and `OUT/mini_test`."""

import dataclasses
import io
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.console import track
from data_pipeline.prepared import Entry
from data_pipeline.source import DataError, NamedBytes, Source, UsageError
from data_pipeline.splits import split

MINI_TEST = 10
PARTIAL = ".partial"


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many images `write_split` wrote to each folder, and what the user must know about source and split."""

    train: int
    test: int
    mini_test: int
    notes: tuple[str, ...]


def write_split(
    source: Source, out: str | Path, *, by: str = "slice", seed: int = 0, picture_format: str = "tif"
) -> Counts:
    """Writes slices with tumour as `out/{train,test}/{image,mask}` (80 % and 20 %), ten test images as `out/mini_test`.

    Every slice is decoded before the first file is written: bad data leave nothing behind.

    Args:
      source: files are copied byte for byte under their own names; slices without files are written as pictures.
      out: a folder that does not exist or is empty.
      by: "slice" (as the reference does; slices of one patient are on both sides) or "patient".
      seed: chooses the split and the ten images.
      picture_format: "tif" or "png", for slices without files.

    Raises:
      UsageError: `out` is not empty, or not a folder.
      DataError: a slice cannot be decoded; folders fix the split already; the split cannot be made; too little space.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"OUT is not a folder: {out}")
    if (out / PARTIAL).exists():
        raise UsageError(f"{out / PARTIAL} is from an interrupted split: remove it and start again, or name a new OUT")
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"OUT is not empty: {out}; nothing was written, name a new folder")
    if any(record.subset for record in source.records):
        raise DataError("the slices are split into train and test folders already; name one pair of folders")
    entries, sizes = [], []
    for index in track(range(len(source.records)), "reading"):
        image, mask = source.read(index)
        entries.append(Entry.of(source.records[index], image, mask))
        files = source.files(index)
        # As pictures: the pixels and a header each.
        sizes.append(sum(len(data) for _, data in files) if files else image.nbytes + mask.nbytes + 1024)
    parts = split(entries, by=by, seed=seed)
    train = sorted({*parts.train, *parts.val})
    test = [index for index in parts.test if entries[index].positives]
    mini_test = set(np.random.default_rng(seed).permutation(test)[:MINI_TEST].tolist())
    _check_space(out, sum(sizes[index] for index in (*train, *test, *mini_test)))
    # The folders get their names only when complete: half a split looks like a whole one.
    partial = out / PARTIAL
    for folder in ("train/image", "train/mask", "test/image", "test/mask", "mini_test"):
        (partial / folder).mkdir(parents=True, exist_ok=True)
    targets = [*((index, "train") for index in train), *((index, "test") for index in test)]
    for index, subset in track(targets, "writing"):
        image_file, mask_file = source.files(index) or _pictures(source, index, picture_format)
        _write(partial / subset / "image", image_file)
        _write(partial / subset / "mask", mask_file)
        if index in mini_test:
            _write(partial / "mini_test", image_file)
    for folder in ("mini_test", "test", "train"):
        (partial / folder).rename(out / folder)
    partial.rmdir()
    return Counts(len(train), len(test), len(mini_test), (*source.notes, *parts.notes))


def _pictures(source: Source, index: int, picture_format: str) -> tuple[NamedBytes, NamedBytes]:
    image, mask = source.read(index)
    name = source.records[index].name
    return (
        (f"{name}.{picture_format}", _encode(image, picture_format)),
        (f"{name}_mask.{picture_format}", _encode(mask[:, :, 0] * np.uint8(255), picture_format)),
    )


def _encode(pixels: np.ndarray, picture_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, {"tif": "TIFF", "png": "PNG"}[picture_format])
    return buffer.getvalue()


def _check_space(out: Path, needed: int) -> None:
    place = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    if (free := shutil.disk_usage(place).free) < needed:
        raise DataError(f"{needed >> 20} MiB are needed below {out}, {free >> 20} MiB are free; nothing was written")


def _write(folder: Path, file: NamedBytes) -> None:
    name, data = file
    try:
        with (folder / name).open("xb") as opened:  # never over a file that exists
            opened.write(data)
    except FileExistsError as error:
        raise DataError(f"two slices would be written to {folder / name}; rename one of them") from error
