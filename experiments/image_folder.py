"""Image files to predict: which files a path names, what their output is called, and how they are read."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np

from data_pipeline.files import read_file, some
from data_pipeline.images import EXTENSIONS, read_image
from data_pipeline.source import DataError
from experiments.config import ConfigError, InferConfig


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """An image to predict."""

    path: Path
    output: str  # prefix of the names of its output; unique, also on file systems that ignore case
    mask: Path | None = None  # the file of its true mask
    problem: str = ""  # why it cannot be used, if that is known before reading it


def requested_images(options: InferConfig) -> tuple[Path, list[ImageFile], list[str]]:
    """Returns the path `infer.images`, and `find_images` of it; raises ConfigError if it is not set."""
    if options.images is None:
        raise ConfigError("infer.images is not set: name an image or a folder of images, --infer.images=FOLDER")
    return Path(options.images), *find_images(Path(options.images), Path(options.masks) if options.masks else None)


def find_images(images: Path, masks: Path | None = None) -> tuple[list[ImageFile], list[str]]:
    """Lists the images of a folder (not of folders in it) by name, or takes a single file. Returns notes, too.

    `x_mask.png` next to `x.png` is a mask, not an image to predict.

    Args:
      images: a folder or a file.
      masks: a folder of masks, or the mask of a single image. The mask of `x.png` is `x.<any extension>` or
        `x_mask.<any extension>`.

    Raises:
      DataError: a path is missing, the folder holds no image, or none of the images has a mask.
    """
    if not images.exists():
        raise DataError(f"no such file or folder: {images} (infer.images)")
    paths, notes = ([images], []) if images.is_file() else _list_images(images)
    files = [ImageFile(path, output) for path, output in zip(paths, output_names(paths), strict=True)]
    if masks is None:
        return files, notes
    if not masks.exists():
        raise DataError(f"no such file or folder: {masks} (infer.masks)")
    if masks.is_file():
        if len(files) > 1:
            raise DataError(f"infer.masks={masks} is one file for {len(files)} images: name a folder of masks")
        return [dataclasses.replace(files[0], mask=masks)], notes
    files = _with_masks(files, masks)
    missing = [file.path.name for file in files if not file.mask and not file.problem]
    if len(missing) == len(files):
        raise DataError(f"none of {len(files)} images has a mask in {masks}; a mask is named after its image")
    if missing:
        notes = [*notes, f"{len(missing)} of {len(files)} images have no mask in {masks}: {some(missing, 3)}"]
    return files, notes


def _list_images(folder: Path) -> tuple[list[Path], list[str]]:
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    folders = [path.name for path in entries if path.is_dir()]
    found = [path for path in entries if _is_image(path)]
    others = [path.name for path in entries if not _is_image(path) and not path.is_dir()]
    stems = {path.stem for path in found}
    masks = {path for path in found if path.stem.endswith("_mask") and path.stem.removesuffix("_mask") in stems}
    images = [path for path in found if path not in masks]
    if not images:
        inside = f"; it holds the folders {some(folders, 3)}: name one of them" if folders else ""
        raise DataError(f"no image ({', '.join(EXTENSIONS)}) in {folder}{inside}")
    notes = []
    if masks:
        notes.append(f"{len(masks)} masks next to the images left out; --infer.masks={folder} draws them")
    if others:
        notes.append(f"{len(others)} files that are not images left out: {some(others, 3)}")
    if folders:
        notes.append(f"{len(folders)} folders in {folder} left out: {some(folders, 3)}")
    return images, notes


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and not path.is_dir()


def output_names(paths: list[Path]) -> list[str]:
    """Returns a unique name for each file: its stem, and if several files share it, also the extension or a number."""
    stems = Counter(path.stem.casefold() for path in paths)
    taken = {stem for stem, count in stems.items() if count == 1}
    names = []
    for path in paths:
        name = path.stem
        if stems[name.casefold()] > 1:
            plain = name = f"{path.stem}_{path.suffix[1:].lower()}"
            number = 2
            while name.casefold() in taken:
                name, number = f"{plain}_{number}", number + 1
            taken.add(name.casefold())
        names.append(name)
    return names


def _with_masks(files: list[ImageFile], folder: Path) -> list[ImageFile]:
    by_stem: dict[str, list[Path]] = {}
    images = {file.path.resolve() for file in files}
    for path in sorted(folder.iterdir()):
        if _is_image(path) and path.resolve() not in images:
            by_stem.setdefault(path.stem, []).append(path)
    result = []
    for file in files:
        stem = file.path.stem
        found = [*by_stem.get(stem, []), *by_stem.get(f"{stem}_mask", [])]
        if len(found) > 1:
            problem = f"two masks for {file.path}: {found[0].name} and {found[1].name} in {folder}"
            result.append(dataclasses.replace(file, problem=problem))
        else:
            result.append(dataclasses.replace(file, mask=found[0] if found else None))
    return result


def read_for_network(path: Path, channels: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Reads an image as `uint8[H, W, channels]` for a network of 1, 3 or 4 channels, with notes to follow "2 images".

    For an RGB network, a grey image is repeated in every channel and transparency is dropped; a network of one channel
    takes an RGB image whose channels are equal. Everything else is refused: 16 bits are not cut to 8, and three
    sequences are not mixed into one.

    Raises:
      DataError: the file cannot be used; the message names it.
    """
    data = read_file(path)
    try:
        return read_image(data, name=str(path), channels=channels), ()
    except DataError as error:
        first = error
    for other, convert, note in _CONVERSIONS.get(channels, ()):
        try:
            image = read_image(data, name=str(path), channels=other)
        except DataError:
            continue
        if channels == 1 and np.any(image != image[:, :, :1]):
            raise first
        return convert(image), (note,)
    raise first


_CONVERSIONS = {
    3: (
        (1, lambda image: np.repeat(image, 3, axis=2), "grey: repeated in three channels"),
        (4, lambda image: np.ascontiguousarray(image[:, :, :3]), "with transparency: it was dropped"),
    ),
    1: ((3, lambda image: np.ascontiguousarray(image[:, :, :1]), "stored as RGB with equal channels: one was taken"),),
}
