"""Writes a source once as ArrayRecord files: the only part of this package that runs TFDS."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipeline.console import progress
from data_pipeline.lgg_mri import NAME, SPLIT, VERSION
from data_pipeline.prepared import Prepared, default_cache_dir, one_line, open_prepared
from data_pipeline.source import DataError, Source

_SPARE_BYTES = 64 << 20


def prepare(
    source: Source,
    cache_dir: str | Path | None = None,
    *,
    progress: bool = True,
    datasets: Sequence[str | Path] = (),
) -> Prepared:
    """Writes a source as ArrayRecord files, unless the same content was prepared before, and opens them.

    The folder is named by content and gets its name when it is complete, so an interrupted run leaves nothing that
    could be taken for a dataset; the next run removes the leftovers. Of several processes one writes and the others
    wait. `source.read` is called from several threads.

    Args:
      source: slices with their masks.
      cache_dir: where prepared datasets are stored; None: `default_cache_dir()`.
      progress: show the progress on stderr.
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
    # The same content may have been prepared from another place: title and notes are those of this source.
    return dataclasses.replace(prepared, kind=source.kind, title=source.title, notes=tuple(source.notes))


def _key(source: Source, fingerprint: str) -> str:
    """The same pixels from another kind of source, or with other patients, are another dataset."""
    rows = [[one.name, one.patient, one.slice, one.site, one.subset] for one in source.records]
    return hashlib.sha256(json.dumps([VERSION, source.kind, fingerprint, rows]).encode()).hexdigest()


def _write(source: Source, fingerprint: str, top: Path, show_progress: bool) -> None:
    image, mask = source.read(0)
    needed = len(source.records) * (image.nbytes + mask.nbytes + 512) + _SPARE_BYTES
    free = shutil.disk_usage(top.parent).free
    if free < needed:
        raise DataError(
            f"preparing {len(source.records)} slices needs up to {needed / 1e9:.2f} GB in {top.parent}, where "
            f"{free / 1e9:.2f} GB are free; make space or choose another data.cache_dir"
        )
    from data_pipeline.lgg_mri import builder  # imports TFDS, which takes over a second

    extra = {"kind": source.kind, "title": source.title, "notes": list(source.notes), "fingerprint": fingerprint}
    bar = progress("preparing slices", len(source.records)) if show_progress else contextlib.nullcontext(lambda: None)
    with bar as advance:
        builder.build(builder.LggMri(source=source, data_dir=top, extra=extra, advance=advance))


@contextlib.contextmanager
def _cache_errors(cache: Path) -> Iterator[None]:
    """Turns the errors of a cache that cannot be written into one sentence (full disk: ArrayRecord's RuntimeError)."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, RuntimeError) as error:
        raise DataError(f"cannot write the prepared data to {cache}: {one_line(error)}; see data.cache_dir") from error


@contextlib.contextmanager
def _lock(cache: Path, top: Path) -> Iterator[bool]:
    """Holds the lock of one prepared dataset, which the system releases when the process ends."""
    with (cache / f"{top.name}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # on a file system without locks, the rename at the end of a build decides
            yield False
        else:
            yield True


def _remove_leftovers(folder: Path) -> None:
    """Removes the leftovers of killed builds; while the lock is held, no other process is building.

    Removes only files with the names that a build writes: a folder that holds anything else stays.
    """
    for left in folder.glob(f"incomplete.??????_{VERSION}"):
        for pattern in (f"{NAME}-{SPLIT}.array_record-*", "*.json", "*.json.incomplete*", "incomplete.*.json"):
            for file in left.glob(pattern):
                file.unlink()
        with contextlib.suppress(OSError):
            left.rmdir()
