"""Writes a source once as ArrayRecord files and opens them: `python -m data_pipeline.prepare --root FOLDER`."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import operator
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_pipeline.cli import exit_code
from data_pipeline.lgg_mri import NAME, SPLIT, VERSION
from data_pipeline.progress import track
from data_pipeline.source import DataError, Source, UsageError

_METADATA = "metadata.json"
_SPARE_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is known of one prepared slice without reading its pixels.

    Attributes:
      name: unique within the dataset.
      patient: the patient it belongs to; empty where the source tells none.
      slice: position in the patient's volume.
      site: the institution, empty where unknown.
      subset: `"train"` or `"test"` where folders fix the split, else empty.
      positives: pixels set in the mask.
      digest: sha256 hex digest of the decoded image's bytes followed by the mask's.
    """

    name: str
    patient: str
    slice: int
    site: str
    subset: str
    positives: int
    digest: str


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared dataset: random access by index, from any number of threads.

    `prepared[i]` is `{"image": uint8[H, W, C], "mask": uint8[H, W, 1] in {0, 1}, "patient": int32, "slice": int32}`;
    the arrays are read-only views. It raises `DataError` with the slice's name when the record cannot be read.

    Attributes:
      path: the folder that holds the records.
      kind: `"kaggle_3m"`, `"folders"` or `"synthetic"`.
      title: one line that says which data this is.
      notes: what the source ignored or found odd.
      fingerprint: sha256 hex digest of the source, independent of where its files lie.
      entries: one for every index.
      patients: the patients' names, sorted; a batch's `"patient"` is an index into them.
      shape: (height, width, channels) of every image.
      mask_shape: (height, width, 1) of every mask.
    """

    path: Path
    kind: str
    title: str
    notes: tuple[str, ...]
    fingerprint: str
    entries: tuple[Entry, ...] = dataclasses.field(repr=False)
    patients: tuple[str, ...] = dataclasses.field(repr=False)
    shape: tuple[int, int, int]
    mask_shape: tuple[int, int, int]
    _patient_of: np.ndarray = dataclasses.field(repr=False, compare=False)
    _records: Any = dataclasses.field(repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = operator.index(index)
        if not 0 <= index < len(self.entries):
            raise IndexError(f"slice {index} of {len(self.entries)}")
        try:
            image, mask = self.decode(self.record(index))
            return {
                "image": image,
                "mask": mask,
                "patient": self._patient_of[index],
                "slice": np.int32(self.entries[index].slice),
            }
        except (OSError, RuntimeError, ValueError, IndexError, KeyError) as error:
            raise DataError(
                f"slice {self.entries[index].name}: cannot read record {index} of {self.path}: {_line(error)}; "
                "remove that folder and prepare the data again"
            ) from error

    def record(self, index: int) -> bytes:
        """Returns one slice as it is stored."""
        return self._records[index]

    def decode(self, record: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Returns image and mask of a record, as views of its bytes; raises ValueError or KeyError."""
        fields = parse_example(record)
        image, mask = (np.frombuffer(fields[name], np.uint8) for name in ("image", "mask"))
        return image.reshape(self.shape), mask.reshape(self.mask_shape)


def default_cache_dir() -> Path:
    """Returns `$XDG_CACHE_HOME/jaxunet`, or `~/.cache/jaxunet` where that is unset or relative."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "jaxunet"


def prepare(
    source: Source,
    cache_dir: str | Path | None = None,
    *,
    progress: bool = True,
    datasets: Sequence[str | Path] = (),
) -> Prepared:
    """Writes a source as ArrayRecord files, unless the same content is there already, and opens them.

    The folder is named by content. It gets its name when it is complete, so an interrupted run leaves nothing that
    could be taken for a dataset; the next run removes what it left. Of several processes one writes, the others wait.
    `source.read` is called from several threads.

    Args:
      source: slices with their masks.
      cache_dir: where prepared datasets are kept; None: `default_cache_dir()`.
      progress: show on stderr how far it is.
      datasets: folders of the user in which nothing may be written; `cache_dir` must lie outside of them.

    Raises:
      DataError: no slices, slices of different sizes, a cache inside a dataset or that cannot be written, or too
        little space.
    """
    names = [record.name for record in source.records]
    if not names:
        raise DataError(f"no slices: {source.title} holds 0 images; expected at least one image with its mask")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"slice {twice} appears {names.count(twice)} times in {source.title}; names must be unique")
    far = next((record for record in source.records if not -(2**31) <= record.slice < 2**31), None)
    if far:
        raise DataError(f"slice {far.name} has the number {far.slice}, which does not fit into 32 bits")
    cache = Path(default_cache_dir() if cache_dir is None else cache_dir).expanduser().absolute()
    for folder in datasets:
        if cache.resolve().is_relative_to(Path(folder).resolve()):
            raise DataError(f"the cache {cache} lies inside the dataset {folder}; choose another data.cache_dir")
    fingerprint = source.fingerprint()
    top = cache / f"{source.kind}-{_key(source, fingerprint)[:16]}"
    path = top / NAME / VERSION
    if not path.exists():
        with _cache_errors(cache), _lock(cache, top) as exclusive:
            if not path.exists():
                if exclusive:
                    _remove_leftovers(path.parent)
                try:
                    _write(source, fingerprint, top, progress)
                except OSError:
                    if not path.exists():  # without a lock another process may have been faster
                        raise
    prepared = open_prepared(path)
    # The same content may lie elsewhere today: words come from the source that was given.
    return dataclasses.replace(prepared, kind=source.kind, title=source.title, notes=tuple(source.notes))


def open_prepared(path: str | Path) -> Prepared:
    """Opens a prepared folder; reads no pixels and imports no TFDS.

    Raises:
      DataError: the folder is missing, was written by another version or is damaged.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    path = Path(path)
    try:
        saved = json.loads((path / _METADATA).read_text())
        entries = tuple(Entry(*row) for row in saved["entries"])
        files = sorted(str(file) for file in path.glob(f"{NAME}-{SPLIT}.array_record-*"))
        records = ArrayRecordDataSource(files)  # reads every file's footer: a truncated one is found here
        if len(records) != len(entries):
            raise DataError(f"{len(records)} records for {len(entries)} slices")
        patients = tuple(sorted({entry.patient for entry in entries}))
        number = {patient: index for index, patient in enumerate(patients)}
        return Prepared(
            path=path,
            kind=saved["kind"],
            title=saved["title"],
            notes=tuple(saved["notes"]),
            fingerprint=saved["fingerprint"],
            entries=entries,
            patients=patients,
            shape=tuple(saved["shape"]),
            mask_shape=tuple(saved["mask_shape"]),
            _patient_of=np.array([number[entry.patient] for entry in entries], np.int32),
            _records=records,
        )
    except FileNotFoundError as error:
        raise DataError(
            f"no prepared dataset in {path}: {_METADATA} is missing; prepare the data again, "
            "and remove that folder first if it exists"
        ) from error
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"the prepared dataset {path} is damaged ({_line(error)}); remove that folder and prepare the data again"
        ) from error


def parse_example(record: bytes) -> dict[str, memoryview]:
    """Returns the bytes features of a serialized `tf.train.Example`, without a copy; others are left out.

    Read by hand, because every other reader imports TFDS or TensorFlow. An Example holds `features = 1`, which holds
    map entries (`key = 1`, `value = 2`), whose value holds `bytes_list = 1`, which holds `value = 1`.

    Raises:
      ValueError: the bytes are no Example.
    """
    result = {}
    for features in _parts(memoryview(record), 1):
        for item in _parts(features, 1):
            (key,), (value,) = _parts(item, 1), _parts(item, 2)
            for bytes_list in _parts(value, 1):
                (result[str(key, "utf-8")],) = _parts(bytes_list, 1)
    return result


def _parts(message: memoryview, number: int) -> list[memoryview]:
    """Returns the length-delimited fields of one number, skipping the others."""
    found, at = [], 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 != 2:
            raise ValueError(f"field of wire type {tag & 7} where only messages and bytes are expected")
        size, at = _varint(message, at)
        if at + size > len(message):
            raise ValueError("the record ends in the middle of a field")
        if tag >> 3 == number:
            found.append(message[at : at + size])
        at += size
    return found


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift, byte in enumerate(message[at : at + 10]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, at + shift + 1
    raise ValueError("the record ends in the middle of a number")


def _key(source: Source, fingerprint: str) -> str:
    """The same pixels as another kind of source, or under other patients, are another dataset."""
    rows = [[one.name, one.patient, one.slice, one.site, one.subset] for one in source.records]
    return hashlib.sha256(json.dumps([VERSION, source.kind, fingerprint, rows]).encode()).hexdigest()


def _write(source: Source, fingerprint: str, top: Path, progress: bool) -> None:
    image, mask = source.read(0)
    needed = len(source.records) * (image.nbytes + mask.nbytes + 512) + _SPARE_BYTES
    free = shutil.disk_usage(top.parent).free
    if free < needed:
        raise DataError(
            f"preparing {len(source.records)} slices needs up to {needed / 1e9:.2f} GB in {top.parent}, where "
            f"{free / 1e9:.2f} GB are free; make space or choose another data.cache_dir"
        )
    from data_pipeline.lgg_mri import builder  # imports TFDS

    extra = {"kind": source.kind, "title": source.title, "notes": list(source.notes), "fingerprint": fingerprint}
    indices = range(len(source.records))
    order: Any = track(indices, "preparing slices") if progress else (index for index in indices)
    with contextlib.closing(order):
        builder.build(builder.LggMri(source=source, data_dir=top, extra=extra, order=order))


@contextlib.contextmanager
def _cache_errors(cache: Path) -> Iterator[None]:
    """A cache that cannot be written (rights, full disk: ArrayRecord raises RuntimeError) is said in one sentence."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, RuntimeError) as error:
        raise DataError(f"cannot write the prepared data to {cache}: {_line(error)}; see data.cache_dir") from error


@contextlib.contextmanager
def _lock(cache: Path, top: Path) -> Iterator[bool]:
    """Holds the lock of one prepared dataset; it ends with the process, however that ends."""
    with (cache / f"{top.name}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: the rename at the end of a build still decides
            yield False
        else:
            yield True


def _remove_leftovers(folder: Path) -> None:
    """Removes what killed builds left; nobody else can be building, because the lock is held.

    Only files with the names that a build writes: a folder that holds anything else stays.
    """
    for left in folder.glob(f"incomplete.??????_{VERSION}"):
        for pattern in (f"{NAME}-{SPLIT}.array_record-*", "*.json", "*.json.incomplete*", "incomplete.*.json"):
            for file in left.glob(pattern):
                file.unlink()
        with contextlib.suppress(OSError):
            left.rmdir()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@dataclasses.dataclass(frozen=True)
class Options:
    """Write a data set once in the form that training reads (training does it by itself), and print what it holds."""

    root: str | None = None
    """A kaggle_3m folder, Kaggle's zip, or a folder with image and mask folders; without it the synthetic set."""
    size: tuple[int, int] = (256, 256)
    """Height and width of a slice."""
    channels: Literal[1, 3, 4] = 3
    """Channels of an image."""
    resize: bool | None = None
    """Bring files of another size to `size`; None: for folders, not for kaggle_3m."""
    mask_threshold: int | None = None
    """Grey value of a mask above which is tumour; without it masks hold 0 and 255 only."""
    cache_dir: str | None = None
    """Where prepared data is kept; None: $XDG_CACHE_HOME/jaxunet or ~/.cache/jaxunet."""
    phantom_patients: int = 48
    """Patients of the synthetic set."""
    phantom_seed: int = 0
    """Seed of the synthetic set."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0 prepared, 1 bad data, 2 usage, 130 interrupted."""
    import tyro

    options = tyro.cli(Options, prog="python -m data_pipeline.prepare", args=argv, use_underscores=True)
    return exit_code(lambda: _run(options))


def _run(options: Options) -> int:
    from rich.console import Console

    from data_pipeline import check, open_source

    if options.cache_dir is not None and not options.cache_dir.strip():
        raise UsageError(f"--cache_dir={options.cache_dir!r} is no path: name a folder")
    console = Console(soft_wrap=True)
    source = open_source(
        options.root,
        size=options.size,
        channels=options.channels,
        resize=options.resize,
        mask_threshold=options.mask_threshold,
        phantom_patients=options.phantom_patients,
        phantom_seed=options.phantom_seed,
    )
    if options.root is None:
        console.print("no --root: SYNTHETIC slices, not patients", style="bold yellow")
    prepared = prepare(source, options.cache_dir, datasets=[options.root] if options.root else [])
    console.print(check.summary(prepared))
    print(f"prepared in {prepared.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
