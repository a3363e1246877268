"""The `kaggle_3m` tree of the LGG segmentation data set, as a folder or inside the zip that Kaggle serves."""

import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np

from data_pipeline.files import READ_THREADS, Tree, in_threads, open_archive, open_folder, some
from data_pipeline.images import fit_pair, read_image, read_mask
from data_pipeline.source import DataError, Record

NAME = re.compile(r"(?P<patient>TCGA_(?P<site>[A-Z0-9]{2})_[A-Z0-9]{4}_\d{8})_(?P<slice>\d{1,6})(?P<mask>_mask)?")
URL = "https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation"


class PairSource:
    """Image and mask files paired by name: what `kaggle_3m` trees and plain folders have in common.

    Attributes:
      kind: see `data_pipeline.source.Source`.
      title: as above.
      notes: as above.
      records: as above.
      pairs: for each record the image and the mask, each as its tree and its name there.
    """

    def __init__(
        self,
        *,
        kind: str,
        title: str,
        notes: Iterable[str],
        slices: Iterable[tuple[Record, tuple[Tree, str], tuple[Tree, str]]],
        size: tuple[int, int] | None,
        channels: int,
        resize: bool,
        mask_threshold: int | None,
    ):
        self.kind = kind
        self.title = title
        self.notes: Sequence[str] = tuple(notes)
        ordered = sorted(slices, key=lambda item: (item[0].patient, item[0].slice, item[0].name))
        self.records: Sequence[Record] = tuple(record for record, _, _ in ordered)
        self.pairs = tuple((image, mask) for _, image, mask in ordered)
        self._size = None if size is None else (int(size[0]), int(size[1]))
        self._channels = channels
        self._resize = resize
        self._mask_threshold = mask_threshold
        self._begun: Iterator[bytes] | None = None

    def fingerprint(self) -> str:
        """Returns a sha256 hex digest of names, bytes and decoding options; reads every file, in a few threads."""
        digests, self._begun = self._begun or in_threads(self._digest, range(len(self.records))), None
        options = (self._size, self._channels, self._resize, self._mask_threshold)
        total = hashlib.sha256(f"pairs 1 {self.kind} {options}\n".encode())
        for record, digest in zip(self.records, digests, strict=True):
            total.update(f"{dataclasses.astuple(record)}\n".encode() + digest)
        return total.hexdigest()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """While entered, files are read for the next `fingerprint`, beside what the caller does; left, no more are."""
        pool = ThreadPoolExecutor(READ_THREADS)
        try:
            self._begun = pool.map(self._digest, range(len(self.records)))
            yield
        finally:
            self._begun = None
            pool.shutdown(cancel_futures=True)

    def _digest(self, index: int) -> bytes:
        image, mask = self.files(index)
        return hashlib.sha256(image[1]).digest() + hashlib.sha256(mask[1]).digest()

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns image `uint8[H, W, C]` and mask `uint8[H, W, 1]` in {0, 1}; raises `DataError`."""
        (image_tree, image_name), (mask_tree, mask_name) = self.pairs[index]
        path = image_tree.path(image_name)
        image = read_image(image_tree.read(image_name), name=path, channels=self._channels)
        mask = read_mask(mask_tree.read(mask_name), name=mask_tree.path(mask_name), threshold=self._mask_threshold)
        return fit_pair(image, mask, self._size, resize=self._resize, name=path)

    def files(self, index: int) -> tuple[tuple[str, bytes], tuple[str, bytes]]:
        """Returns file name and bytes of the image and of the mask, as they are stored."""
        image, mask = ((PurePosixPath(name).name, tree.read(name)) for tree, name in self.pairs[index])
        return image, mask


def open_kaggle(
    root: str | Path,
    *,
    size: tuple[int, int] | None = None,
    channels: int = 3,
    resize: bool = False,
    mask_threshold: int | None = None,
) -> PairSource:
    """Opens the `kaggle_3m` tree: lists it and pairs it by name; nothing is decoded yet.

    Kaggle's archive holds the tree twice (`kaggle_3m` and `lgg-mri-segmentation/kaggle_3m`): a slice that is found
    again with the same bytes is left out, and a note says so.

    Args:
      root: the `kaggle_3m` folder, a folder that holds it, or Kaggle's zip (which is read without extraction).
      size: (height, width) that every slice must have, or None for any.
      channels: channels of an image file.
      resize: resize slices of another size instead of refusing them; masks by nearest neighbour.
      mask_threshold: see `data_pipeline.images.read_mask`.

    Raises:
      DataError: root is missing or holds no slices; a TIFF with another name; an image without mask or a mask without
        image; a slice that is there twice with different bytes.
    """
    root = Path(root)
    tree = open_archive(root) if root.is_file() else open_folder(root)
    notes = [f"{tree.hidden} hidden files ignored"] if tree.hidden else []
    found: dict[str, str] = {}  # stem -> name in the tree
    again: list[tuple[str, str]] = []
    odd = []
    others = 0
    for name in sorted(tree.names, key=_depth_first):
        path = PurePosixPath(name)
        if path.suffix.lower() not in (".tif", ".tiff"):
            others += path.suffix.lower() not in (".csv", ".md", ".txt")
        elif not NAME.fullmatch(path.stem):
            odd.append(name)
        elif path.stem in found:
            again.append((found[path.stem], name))
        else:
            found[path.stem] = name
    if not found:
        raise DataError(
            f"no slices named TCGA_<site>_<patient>_<date>_<n>.tif below {root}, which holds "
            f"{some(sorted({name.split('/')[0] for name in tree.names}), 5) or 'nothing'}; expected the kaggle_3m "
            f"folder (or zip) of {URL}, or folders train/image, train/mask, test/image, test/mask"
        )
    if odd:
        raise DataError(
            f"{len(odd)} TIFF files in {root} are not named TCGA_<site>_<patient>_<date>_<n>[_mask].tif: {some(odd)}; "
            "move them away"
        )
    if others:
        notes.append(f"{others} files that are not TIFF ignored")
    if again:
        notes.append(_check_copies(tree, again))
    stems = [stem for stem in found if not stem.endswith("_mask")]
    check_paired(stems, [stem.removesuffix("_mask") for stem in found if stem.endswith("_mask")], str(root))
    slices = [
        (parse_name(stem), (tree, found[stem]), (tree, found[f"{stem}_mask"]))
        for stem in stems
    ]  # fmt: skip
    return PairSource(
        kind="kaggle_3m",
        title="LGG MRI slices, kaggle_3m tree (real data)",
        notes=notes,
        slices=slices,
        size=size,
        channels=channels,
        resize=resize,
        mask_threshold=mask_threshold,
    )


def parse_name(stem: str) -> Record:
    """Reads patient, slice number and site from `TCGA_<site>_<patient>_<date>_<n>`."""
    match = NAME.fullmatch(stem)
    if not match or match["mask"]:
        raise DataError(f"expected a name like TCGA_CS_4941_19960909_12, got {stem!r}")
    return Record(name=stem, patient=match["patient"], slice=int(match["slice"]), site=match["site"])


def check_paired(images: Iterable[str], masks: Iterable[str], where: str) -> None:
    """Raises `DataError` with counts and up to ten names unless images and masks have the same stems."""
    images, masks = set(images), set(masks)
    problems = []
    for missing, what, lacks in ((images - masks, "image", "mask"), (masks - images, "mask", "image")):
        if missing:
            have = f"{what} has" if len(missing) == 1 else f"{what}s have"
            problems.append(f"{len(missing)} {have} no {lacks}: {some(sorted(missing))}")
    if problems:
        raise DataError(f"{'; '.join(problems)} (in {where})")


def _depth_first(name: str) -> tuple[int, str]:
    """The outermost tree is the one that counts, whatever order the file system lists."""
    return name.count("/"), name


def _check_copies(tree: Tree, again: list[tuple[str, str]]) -> str:
    def same(pair: tuple[str, str]) -> bool:
        return tree.same(*pair)

    for (first, second), equal in zip(again, in_threads(same, again), strict=True):
        if not equal:
            raise DataError(
                f"duplicate slice {PurePosixPath(first).stem} differs: {tree.path(first)} and {tree.path(second)} "
                "have the same name but other bytes; remove one of them"
            )
    folders = sorted({_tree_folder(second) for _, second in again})
    return f"ignored duplicate tree {some(folders, 3)}: {len(again)} files with the same names and bytes"


def _tree_folder(name: str) -> str:
    parent = PurePosixPath(name).parent
    return str(parent.parent if parent.name.startswith("TCGA_") else parent)
