"""Image and mask files paired by name: what `kaggle_3m` trees and plain folders have in common."""

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

import numpy as np

from data_pipeline.files import Tree, in_threads, some
from data_pipeline.images import fit_pair, read_image, read_mask
from data_pipeline.source import DataError, NamedBytes, Record, Source, SourceOptions

TCGA_NAME = re.compile(r"(?P<patient>TCGA_(?P<site>[A-Z0-9]{2})_[A-Z0-9]{4}_\d{8})_(?P<slice>\d{1,6})(?P<mask>_mask)?")

File = tuple[Tree, str]
"""A tree and a name in it."""
PairedFiles = tuple[Record, File, File]
"""A slice with the files of its image and its mask."""


class PairSource(Source):
    """A `Source` of image and mask files.

    Attributes:
      kind, title, notes, records: see `data_pipeline.source.Source`.
      pairs: for each record the files of image and mask.
    """

    def __init__(
        self,
        *,
        kind: str,
        title: str,
        notes: Iterable[str],
        slices: Iterable[PairedFiles],
        options: SourceOptions,
        resize: bool,
    ):
        self.kind, self.title = kind, title
        self.notes: Sequence[str] = tuple(notes)
        ordered = sorted(slices, key=lambda item: (item[0].patient, item[0].slice, item[0].name))
        self.records: Sequence[Record] = tuple(record for record, _, _ in ordered)
        self.pairs = tuple((image, mask) for _, image, mask in ordered)
        self._size = None if options.size is None else (int(options.size[0]), int(options.size[1]))
        self._channels, self._mask_threshold = options.channels, options.mask_threshold
        self._resize = resize if options.resize is None else options.resize

    def fingerprint(self) -> str:
        """Returns a sha256 hex digest of names, bytes and decoding options; reads every file, in a few threads."""
        options = (self._size, self._channels, self._resize, self._mask_threshold)
        total = hashlib.sha256(f"pairs 1 {self.kind} {options}\n".encode())
        for record, digest in zip(self.records, in_threads(self._digest, range(len(self.records))), strict=True):
            total.update(f"{dataclasses.astuple(record)}\n".encode() + digest)
        return total.hexdigest()

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

    def files(self, index: int) -> tuple[NamedBytes, NamedBytes]:
        """Returns name and bytes of the image's and the mask's file, as they are stored."""
        image, mask = ((PurePosixPath(name).name, tree.read(name)) for tree, name in self.pairs[index])
        return image, mask


def parse_name(stem: str) -> Record:
    """Reads patient, slice number and site from `TCGA_<site>_<patient>_<date>_<n>`; raises `DataError`."""
    match = TCGA_NAME.fullmatch(stem)
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
