"""Writes the documented folders: `python -m data_pipeline.split ROOT OUT [--by=slice|patient] [--seed=0]`.

`OUT/{train,test}/{image,mask}` receive byte copies of the slices with tumour, 80 % and 20 %; `OUT/mini_test` ten images
of the test folder to try inference on.
"""

import dataclasses
import io
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from tyro.conf import Positional, arg

from data_pipeline import open_source
from data_pipeline.cli import exit_code
from data_pipeline.folders import find_pairs
from data_pipeline.kaggle import PairSource
from data_pipeline.progress import track
from data_pipeline.source import DataError, Source, UsageError
from data_pipeline.splits import split

MINI_TEST = 10
PARTIAL = ".partial"

NamedBytes = tuple[str, bytes]


@dataclasses.dataclass(frozen=True)
class Counts:
    """What `write_split` wrote.

    Attributes:
      train: images in `train/image`.
      test: images in `test/image`.
      mini_test: images in `mini_test`.
      notes: what the user must know about source and split.
    """

    train: int
    test: int
    mini_test: int
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Options:
    """Split a data set into the documented folders.

    ROOT is a kaggle_3m folder, Kaggle's zip, or a folder with the folders image and mask. OUT receives byte copies of
    the slices with tumour, 80 % in train/image and train/mask, 20 % in test/image and test/mask, and in mini_test
    ten test images to try inference on.
    """

    root: Annotated[Positional[str], arg(metavar="ROOT")]
    """The data set; left out with --synthetic."""
    out: Annotated[Positional[str], arg(metavar="OUT")] = ""
    """A folder that does not exist or is empty."""
    by: Literal["slice", "patient"] = "slice"
    """slice: as documented, slices of a patient are on both sides; patient: the honest one."""
    seed: int = 0
    """The same seed gives the same split."""
    mask_threshold: int | None = None
    """Grey value of a mask above which is tumour; without it masks hold 0 and 255 only."""
    channels: Literal[1, 3, 4] = 3
    """Channels of an image file."""
    synthetic: bool = False
    """Write drawn slices, for demonstrations."""
    patients: int = 48
    """Patients of the synthetic set."""
    size: tuple[int, int] = (256, 256)
    """Height and width of synthetic slices."""
    picture_format: Literal["tif", "png"] = "tif"
    """File format of synthetic slices."""


def write_split(
    source: Source, out: str | Path, *, by: str = "slice", seed: int = 0, picture_format: str = "tif"
) -> Counts:
    """Writes slices with tumour as `out/{train,test}/{image,mask}` and ten test images as `out/mini_test`.

    Every slice is decoded before the first file is written: bad data leave nothing behind.

    Args:
      source: files are copied byte for byte under their own names; synthetic slices are written as pictures.
      out: a folder that does not exist or is empty.
      by: "slice" (documented; patients are on both sides) or "patient".
      seed: chooses the split and the ten images.
      picture_format: "tif" or "png", for synthetic slices.

    Raises:
      UsageError: `out` is not empty, or no folder.
      DataError: a slice cannot be decoded; folders fix the split already; the split cannot be made; too little space.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"OUT is not a folder: {out}")
    if (out / PARTIAL).exists():
        raise UsageError(f"{out / PARTIAL} is what a stopped split left: remove it and start again, or give a new OUT")
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"OUT is not empty: {out}; nothing was written, give a new folder")
    if any(record.subset for record in source.records):
        raise DataError("the slices lie in train and test folders already; give a folder of image and mask folders")
    slices = [_Labelled.of(source, index) for index in track(range(len(source.records)), "reading")]
    parts = split(slices, by=by, seed=seed)
    train = sorted({*parts.train, *parts.val})
    test = [index for index in parts.test if slices[index].positives]
    mini_test = set(np.random.default_rng(seed).permutation(test)[:MINI_TEST].tolist())
    _check_space(out, sum(slices[index].bytes for index in (*train, *test, *mini_test)))
    # Under their names only when complete: half a split looks like a whole one.
    partial = out / PARTIAL
    for folder in ("train/image", "train/mask", "test/image", "test/mask", "mini_test"):
        (partial / folder).mkdir(parents=True, exist_ok=True)
    targets = [*((index, "train") for index in train), *((index, "test") for index in test)]
    for index, subset in track(targets, "writing"):
        (image_name, image), (mask_name, mask) = _files(source, index, picture_format)
        _write(partial / subset / "image" / image_name, image)
        _write(partial / subset / "mask" / mask_name, mask)
        if index in mini_test:
            _write(partial / "mini_test" / image_name, image)
    for folder in ("mini_test", "test", "train"):
        (partial / folder).rename(out / folder)
    partial.rmdir()
    return Counts(len(train), len(test), len(mini_test), (*source.notes, *parts.notes))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0 done, 1 bad data, 2 usage."""
    import tyro

    options = tyro.cli(Options, prog="python -m data_pipeline.split", args=argv, use_underscores=True)
    return exit_code(lambda: _run(options))


def _run(options: Options) -> int:
    if options.seed < 0:
        raise UsageError(f"--seed={options.seed}: must be at least 0")
    source, out = _open(options)
    counts = write_split(source, out, by=options.by, seed=options.seed, picture_format=options.picture_format)
    print(source.title)
    for note in counts.notes:
        print(f"note: {note}")
    print(f"{counts.train} training and {counts.test} test slices with tumour, {counts.mini_test} in mini_test: {out}")
    return 0


@dataclasses.dataclass(frozen=True)
class _Labelled:
    name: str
    patient: str
    site: str
    subset: str
    positives: int
    bytes: int

    @classmethod
    def of(cls, source: Source, index: int) -> "_Labelled":
        record = source.records[index]
        image, mask = source.read(index)
        if isinstance(source, PairSource):
            size = sum(tree.size(name) for tree, name in source.pairs[index])
        else:
            size = image.nbytes + mask.nbytes + 1024
        return cls(record.name, record.patient, record.site, record.subset, int(mask.sum()), size)


def _open(options: Options) -> tuple[Source, Path]:
    if options.synthetic:
        from data_pipeline.phantom import open_phantom

        if options.out:
            raise UsageError("with --synthetic give OUT alone, there is no ROOT")
        open_source(None, size=options.size, phantom_patients=options.patients)  # says which numbers it cannot use
        return open_phantom(patients=options.patients, size=options.size, seed=options.seed), Path(options.root)
    if not options.out:
        raise UsageError("OUT is missing: python -m data_pipeline.split ROOT OUT")
    root, out = Path(options.root), Path(options.out)
    if root.is_dir() and out.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"OUT lies in ROOT: {out}; the copies would become part of the data set")
    pairs = find_pairs(root) if root.is_dir() else None
    if pairs and any(subset for subset, _, _ in pairs):
        raise DataError(f"{root} is split into train and test folders already")
    return open_source(
        root, size=None, channels=options.channels, resize=False, mask_threshold=options.mask_threshold
    ), out


def _files(source: Source, index: int, picture_format: str) -> tuple[NamedBytes, NamedBytes]:
    if isinstance(source, PairSource):
        return source.files(index)
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


def _write(path: Path, data: bytes) -> None:
    try:
        with path.open("xb") as file:  # never over a file that is there
            file.write(data)
    except FileExistsError as error:
        raise DataError(f"two slices would be written to {path}; rename one of them") from error


if __name__ == "__main__":
    sys.exit(main())
