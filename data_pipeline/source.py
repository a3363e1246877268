"""What every source of slices offers, how a source registers itself, and the errors that bad data or options raise."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

MAX_SIDE = 1 << 16

NamedBytes = tuple[str, bytes]
Pair = tuple[str, str | Path, str | Path]
"""Subset ("train", "test" or ""), image folder, mask folder."""


class DataError(ValueError):
    """The data cannot be used; the message names the file, what was found, what was expected and the remedy."""

    exit_code = 1


class UsageError(ValueError):
    """An option has a value that no data allow; exit code 2."""

    exit_code = 2


@dataclasses.dataclass(frozen=True)
class Record:
    """One slice, as its source names it."""

    name: str  # unique within the source, without extension, for example TCGA_CS_4941_19960909_12
    patient: str  # for example TCGA_CS_4941_19960909; empty where the name holds none
    slice: int  # position in the patient's volume
    site: str = ""  # the institution that acquired it (CS, DU, ...), empty where unknown
    subset: str = ""  # "train" or "test" where folders fix the split


@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """How a source is read; each source uses the options that apply to it. Raises `UsageError` out of range."""

    size: tuple[int, int] | None = None  # (height, width); None: the size of the files (synthetic slices: 256x256)
    channels: int = 3  # of an image
    resize: bool | None = None  # slices of another size; None: the source decides (folders do, kaggle_3m does not)
    mask_threshold: int | None = None  # grey value above which a mask is tumour; None: masks hold 0 and 255 only
    phantom_patients: int = 48
    phantom_seed: int = 0

    def __post_init__(self) -> None:
        if self.size is not None and not all(1 <= side <= MAX_SIDE for side in self.size):
            height, width = self.size
            raise UsageError(f"size {height}x{width}: height and width must be from 1 to {MAX_SIDE} pixels")
        if self.mask_threshold is not None and not 0 <= self.mask_threshold <= 254:
            raise UsageError(f"mask_threshold={self.mask_threshold}: must be a grey value from 0 to 254")
        if self.phantom_patients < 3:
            raise UsageError(
                f"{self.phantom_patients} synthetic patients: at least 3, one each for training, validation, test"
            )
        if self.phantom_seed < 0:
            raise UsageError(f"seed={self.phantom_seed}: must be at least 0")


DEFAULTS = SourceOptions()


class Source(Protocol):
    """Slices with their masks, in a fixed order, addressed by index."""

    kind: str  # the name under which the source is registered, for example "kaggle_3m"
    title: str  # one line that is printed, saved with every run and shown on every figure
    notes: Sequence[str]  # what was ignored or looked odd, one sentence each
    records: Sequence[Record]  # sorted by patient, slice and name

    def fingerprint(self) -> str:
        """Returns a sha256 hex digest of names, bytes and decoding options; independent of where the files lie."""
        ...

    def read(self, index: int) -> "tuple[np.ndarray, np.ndarray]":
        """Returns image `uint8[H, W, C]` and mask `uint8[H, W, 1]` in {0, 1}, or raises `DataError`; thread-safe."""
        ...

    def files(self, index: int) -> tuple[NamedBytes, NamedBytes] | None:
        """Returns name and bytes of the image's and the mask's file; None where there are no files to copy."""
        return None


Open = Callable[[Any, SourceOptions], Source]
"""Opens a root: a `Path`, unless the kind opens something else."""
Opener = TypeVar("Opener", bound=Open)


@dataclasses.dataclass(frozen=True)
class SourceKind:
    """What is known of a kind of source before one is opened."""

    opens: Callable[[Path | None], bool]  # whether a root (None: none was named) is of this kind
    open: Open
    expects: str = ""  # which files, for the error message when no kind opens a root
    synthetic: bool = False  # drawn by a program
    fixed_size: bool = True  # slices of different sizes are a defect of the data
    gapless: bool = True  # missing numbers within a volume are a defect of the data
    rank: int = 0  # kinds of a higher rank are asked later
    homepage: str | None = None  # both are written into the description of the prepared data
    citation: str | None = None


_KINDS: dict[str, SourceKind] = {}


def register(kind: str, *, opens: Callable[[Path | None], bool], **attributes: Any) -> Callable[[Opener], Opener]:
    """Registers the decorated function or class, which opens a root with options, as a kind of source.

    Args:
      kind: its name, as in `Source.kind`. Kinds are asked by rank, then alphabetically; the first that opens a root is
        used.
      opens: see `SourceKind`.
      **attributes: other fields of `SourceKind` that differ from their defaults.
    """

    def add(function: Opener) -> Opener:
        _KINDS[kind] = SourceKind(opens, function, **attributes)
        return function

    return add


def source_kinds() -> Mapping[str, SourceKind]:
    """Returns the kinds of sources by name, in the order in which they are asked."""
    # Imported on first use: a program that only parses its command line needs no image decoders.
    package = importlib.import_module("data_pipeline.sources")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_KINDS.items(), key=lambda item: (item[1].rank, item[0])))


def source_kind(name: str) -> SourceKind:
    """Returns a kind by name; a source that was not registered has the default attributes."""
    return source_kinds().get(name) or SourceKind(opens=lambda root: False, open=lambda root, options: root)


def open_source(
    root: str | Path | None, options: SourceOptions = DEFAULTS, *, pairs: Sequence[Pair] | None = None
) -> Source:
    """Opens the data set that a configuration names.

    Args:
      root: a `kaggle_3m` tree or zip, a folder that holds `{train,test}/{image,mask}` or `{image,mask}`, or whatever
        else a module of `data_pipeline.sources` opens. None, without pairs: the synthetic set.
      options: how it is read.
      pairs: instead of a root: (subset, image folder, mask folder), see `data_pipeline.sources.folders.open_folders`.

    Raises:
      UsageError: an option that the source cannot use.
      DataError: the place is missing or not usable; the synthetic set never replaces it.
    """
    kinds = source_kinds()
    if pairs:
        if root is not None:
            raise DataError(f"both a root ({root}) and image and mask folders are given; give one of them")
        return kinds["folders"].open(pairs, options)
    path = None if root is None else Path(root)
    if path is not None and (str(root) == "" or not path.exists()):
        raise DataError(f"no such file or folder: {str(root)!r} (data.root)")
    for kind in kinds.values():
        if kind.opens(path):
            return kind.open(path, options)
    assert path is not None, "the synthetic set opens without a root"
    if path.is_file():
        content = "a file"
    else:
        content = "holds " + (", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing")
    expected = ", or ".join(kind.expects for kind in kinds.values() if kind.expects)
    raise DataError(f"not a data set: {path} ({content}); expected {expected}")
