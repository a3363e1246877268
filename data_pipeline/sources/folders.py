"""Image and mask folders, paired by name: the `BrainTumor` layout of the reference, or any two folders."""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from data_pipeline.files import Tree, open_folder, some
from data_pipeline.images import EXTENSIONS
from data_pipeline.source import DEFAULTS, DataError, Pair, Record, SourceOptions, register
from data_pipeline.sources.pairs import TCGA_NAME, PairedFiles, PairSource, check_paired, parse_name

_PHANTOM = re.compile(r"(?P<patient>phantom_(?P<site>S\d+)_\d+)_(?P<slice>\d{1,6})")
_NUMBERED = re.compile(r"(?P<patient>.+?)[_-]+(?P<slice>\d{1,6})")
_IMAGES, _MASKS = ("image", "images"), ("mask", "masks")


def is_folders(root: Path | None) -> bool:
    """Whether a root is a folder with image and mask folders."""
    return root is not None and root.is_dir() and find_pairs(root) is not None


def find_pairs(root: str | Path) -> list[Pair] | None:
    """Recognises `{train,test}/{image,mask}` or `{image,mask}` below a folder.

    Args:
      root: an existing folder.

    Returns:
      (subset, image folder, mask folder) for `open_folders`, or None where neither layout is found. A layout with
      only one of its folders is returned whole, so that `open_folders` can name the missing one.
    """
    root = Path(root)
    subsets = {subset: _find_pair(root / subset, subset) for subset in ("train", "test")}
    if any(subsets.values()):
        return [
            pair or (subset, root / subset / _IMAGES[0], root / subset / _MASKS[0]) for subset, pair in subsets.items()
        ]
    pair = _find_pair(root, "")
    return [pair] if pair else None


@register(
    "folders",
    opens=is_folders,
    expects="a folder with train/image, train/mask, test/image, test/mask (or image and mask)",
    fixed_size=False,
    gapless=False,  # a selection of slices is common here
    rank=1,  # other layouts may have folders of these names too
)
def open_folders(pairs: Path | Sequence[Pair], options: SourceOptions = DEFAULTS) -> PairSource:
    """Opens image and mask folders: lists them and pairs them by name; nothing is decoded yet.

    An image `x.png` belongs to the mask `x.<any extension>` or `x_mask.<any extension>`. Patient, slice and site are
    read from names like `TCGA_CS_4941_19960909_12` or `<patient>_<number>`; other names leave the patient empty.

    Args:
      pairs: (subset, image folder, mask folder), subset "train", "test" or "" where the split is not fixed. Both may
        be the same folder if masks end in `_mask`. Or the folder that holds them, see `find_pairs`.
      options: slices of another size are resized unless `resize` is False.

    Raises:
      DataError: a folder is missing or holds no pictures; an image without mask or a mask without image; two files
        for one image or mask.
    """
    if isinstance(pairs, Path):
        pairs = find_pairs(pairs) or []
    slices: list[PairedFiles] = []
    notes: list[str] = []
    trees: dict[Path, Tree] = {}
    for subset, image_folder, mask_folder in pairs:
        for folder in (Path(image_folder), Path(mask_folder)):
            if folder not in trees:
                trees[folder] = _open(folder)
        image_tree, mask_tree = trees[Path(image_folder)], trees[Path(mask_folder)]
        image_names, mask_names = _stems(image_tree), _stems(mask_tree)
        if image_tree is mask_tree:
            image_names = {stem: name for stem, name in image_names.items() if not stem.endswith("_mask")}
            mask_names = {stem: name for stem, name in mask_names.items() if stem.endswith("_mask")}
        mask_names = _without_suffix(mask_names, image_names, mask_tree)
        check_paired(image_names, mask_names, f"{image_folder} and {mask_folder}")
        slices += [
            (_record(stem, subset), (image_tree, name), (mask_tree, mask_names[stem]))
            for stem, name in image_names.items()
        ]
    for folder, tree in trees.items():
        if tree.hidden:
            notes.append(f"{tree.hidden} hidden files ignored in {folder}")
        if others := sum(not _is_picture(name) for name in tree.names):
            notes.append(f"{others} files that are not pictures ignored in {folder}")
    return PairSource(
        kind="folders",
        title=_title(pairs, [record for record, _, _ in slices]),
        notes=notes,
        slices=_unique(slices),
        options=options,
        resize=True,
    )


def _find_pair(root: Path, subset: str) -> Pair | None:
    image = next((root / name for name in _IMAGES if (root / name).is_dir()), None)
    mask = next((root / name for name in _MASKS if (root / name).is_dir()), None)
    if image is None and mask is None:
        return None
    return subset, image or root / _IMAGES[0], mask or root / _MASKS[0]


def _open(folder: Path) -> Tree:
    tree = open_folder(folder, recursive=False)
    if not any(_is_picture(name) for name in tree.names):
        raise DataError(f"no pictures ({', '.join(EXTENSIONS)}) in {folder}")
    return tree


def _is_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


def _stems(tree: Tree) -> dict[str, str]:
    stems: dict[str, str] = {}
    for name in filter(_is_picture, tree.names):
        stem = PurePosixPath(name).stem
        if stem in stems:
            raise DataError(f"two pictures named {stem} in {tree.root}: {stems[stem]} and {name}; remove one of them")
        stems[stem] = name
    return stems


def _without_suffix(masks: dict[str, str], images: dict[str, str], tree: Tree) -> dict[str, str]:
    """Returns masks by the stem of their image; an image called `x_mask` keeps its name."""
    result: dict[str, str] = {}
    for stem, name in masks.items():
        key = stem if stem in images else stem.removesuffix("_mask")
        if key in result:
            raise DataError(f"two masks for {key} in {tree.root}: {result[key]} and {name}; remove one of them")
        result[key] = name
    return result


def _record(stem: str, subset: str) -> Record:
    if (match := TCGA_NAME.fullmatch(stem)) and not match["mask"]:
        return dataclasses.replace(parse_name(stem), subset=subset)
    if match := _PHANTOM.fullmatch(stem):
        return Record(stem, match["patient"], int(match["slice"]), site=match["site"], subset=subset)
    if match := _NUMBERED.fullmatch(stem):
        return Record(name=stem, patient=match["patient"], slice=int(match["slice"]), subset=subset)
    return Record(name=stem, patient="", slice=0, subset=subset)


def _title(pairs: Sequence[Pair], records: Sequence[Record]) -> str:
    folders = [Path(folder).absolute() for _, *both in pairs for folder in both]
    common = Path(os.path.commonpath(folders)).name or ", ".join(folder.name for folder in folders)
    phantoms = sum(_PHANTOM.fullmatch(record.name) is not None for record in records)
    warning = f"SYNTHETIC PHANTOMS, NOT REAL DATA ({phantoms} of {len(records)} slices): " if phantoms else ""
    return f"{warning}image and mask folders, {common}"


def _unique(slices: list[PairedFiles]) -> list[PairedFiles]:
    """Prefixes slices of the same name in training and test folders with the name of the folder."""
    counts = Counter(record.name for record, _, _ in slices)
    slices = [
        (dataclasses.replace(one, name=f"{one.subset}-{one.name}") if counts[one.name] > 1 else one, image, mask)
        for one, image, mask in slices
    ]
    counts = Counter(record.name for record, _, _ in slices)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise DataError(f"{len(twice)} slices have the same name in two folders: {some(twice)}; rename them")
    return slices
