"""Images to predict: which files a path names, what their output is called, and how they are read."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np

from data_pipeline.files import read_file, some
from data_pipeline.images import EXTENSIONS, read_image
from data_pipeline.source import DataError


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image file.

    Attributes:
      path: the file.
      output: what the names of its output begin with; unique, also where file names differ in case only.
      mask: the file of its true mask, None where there is none.
      problem: why it cannot be used, empty if nothing is known yet.
    """

    path: Path
    output: str
    mask: Path | None = None
    problem: str = ""


def find_pictures(images: Path, masks: Path | None = None) -> tuple[list[Picture], list[str]]:
    """Lists the images of a folder (not of folders in it), or takes a single file.

    `x_mask.png` beside `x.png` is a mask and no image to predict.

    Args:
      images: a folder or a file.
      masks: a folder of masks, or the mask of a single image. An image `x.png` belongs to the mask `x.<any extension>`
        or `x_mask.<any extension>`.

    Returns:
      The pictures in the order of their names, and notes on what was left out.

    Raises:
      DataError: a path is missing, the folder holds no image, or none of the images has a mask.
    """
    if not images.exists():
        raise DataError(f"no such file or folder: {images} (infer.images)")
    paths, notes = ([images], []) if images.is_file() else _list_images(images)
    pictures = [Picture(path, output) for path, output in zip(paths, output_names(paths), strict=True)]
    if masks is None:
        return pictures, notes
    if not masks.exists():
        raise DataError(f"no such file or folder: {masks} (infer.masks)")
    if masks.is_file():
        if len(pictures) > 1:
            raise DataError(f"infer.masks={masks} is one file for {len(pictures)} images: name a folder of masks")
        return [dataclasses.replace(pictures[0], mask=masks)], notes
    pictures = _with_masks(pictures, masks)
    missing = [picture.path.name for picture in pictures if not picture.mask and not picture.problem]
    if len(missing) == len(pictures):
        raise DataError(f"none of {len(pictures)} images has a mask in {masks}; masks carry the name of their image")
    if missing:
        notes = [*notes, f"{len(missing)} of {len(pictures)} images have no mask in {masks}: {some(missing, 3)}"]
    return pictures, notes


def _list_images(folder: Path) -> tuple[list[Path], list[str]]:
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    found = [path for path in entries if path.suffix.lower() in EXTENSIONS and not path.is_dir()]
    stems = {path.stem for path in found}
    masks = [path for path in found if path.stem.endswith("_mask") and path.stem.removesuffix("_mask") in stems]
    images = [path for path in found if path not in set(masks)]
    folders = [path.name for path in entries if path.is_dir()]
    others = [path.name for path in entries if path not in set(found) and not path.is_dir()]
    if not images:
        inside = f"; it holds the folders {some(folders, 3)}: name one of them" if folders else ""
        raise DataError(f"no image ({', '.join(EXTENSIONS)}) in {folder}{inside}")
    notes = []
    if masks:
        notes.append(f"{len(masks)} masks beside the images left out; --infer.masks={folder} draws them")
    if others:
        notes.append(f"{len(others)} files that are no images left out: {some(others, 3)}")
    if folders:
        notes.append(f"{len(folders)} folders in {folder} left out: {some(folders, 3)}")
    return images, notes


def output_names(paths: list[Path]) -> list[str]:
    """Returns a unique name for each file: its stem, and where two files share one, also the extension or a number."""
    stems = Counter(path.stem.casefold() for path in paths)
    taken = {path.stem.casefold() for path in paths if stems[path.stem.casefold()] == 1}
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


def _with_masks(pictures: list[Picture], folder: Path) -> list[Picture]:
    by_stem: dict[str, list[Path]] = {}
    images = {picture.path.resolve() for picture in pictures}
    for path in sorted(folder.iterdir()):
        usable = path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and not path.is_dir()
        if usable and path.resolve() not in images:
            by_stem.setdefault(path.stem, []).append(path)
    result = []
    for picture in pictures:
        stem = picture.path.stem
        found = [*by_stem.get(stem, []), *by_stem.get(f"{stem}_mask", [])]
        if len(found) > 1:
            problem = f"two masks for {picture.path}: {found[0].name} and {found[1].name} in {folder}"
            result.append(dataclasses.replace(picture, problem=problem))
        else:
            result.append(dataclasses.replace(picture, mask=found[0] if found else None))
    return result


def read_picture(path: Path, channels: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Reads an image as the network wants it.

    A grey image is repeated in every channel of an RGB network, the transparency of an RGB image is dropped, and an RGB
    image whose channels are equal serves a network of one channel. Anything else that does not fit is refused: 16 bits
    are not cut to 8, and three sequences are not mixed into one.

    Args:
      path: the file.
      channels: of the network, 1, 3 or 4.

    Returns:
      `uint8[H, W, channels]`, and what was converted, to follow "2 images".

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
