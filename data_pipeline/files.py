"""A folder or a zip archive as a list of regular files; no path leads outside, and archives are not extracted."""

import dataclasses
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TypeVar

from data_pipeline.source import DataError

MAX_FILE_BYTES = 512 << 20  # a decoded image has at most 8192 x 8192 x 4 bytes = 256 MiB
MAX_ARCHIVE_BYTES = 8 << 30  # the Kaggle archive holds 2.1 GB, the tree counted twice
MAX_ARCHIVE_FILES = 50_000  # and 15 719 files
READ_THREADS = 4

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Tree:
    """The files below one folder or in one archive."""

    root: str  # for messages
    names: tuple[str, ...]  # relative to the root with / between parts, sorted, without hidden files
    hidden: int  # number of hidden files
    read: Callable[[str], bytes]  # of one of the names; raises DataError
    same: Callable[[str, str], bool]  # whether two of the names hold the same bytes

    def path(self, name: str) -> str:
        """Returns how a message names a file of the tree."""
        return f"{self.root}/{name}"


def read_file(path: str | Path) -> bytes:
    """Returns the bytes of a regular file; raises `DataError` for anything else (a pipe is never opened)."""
    try:
        status = os.stat(path)  # noqa: PTH116 - one call for a str or a Path, this is the hot path
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"not a regular file: {path}")
        if status.st_size > MAX_FILE_BYTES:
            raise DataError(f"file of {status.st_size} bytes, at most {MAX_FILE_BYTES} are read: {path}")
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            return file.readall()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def open_folder(root: str | Path, *, recursive: bool = True) -> Tree:
    """Lists the files below a folder.

    Symbolic links are followed only where they stay below the folder: a downloaded data set must not make the program
    read other files of the user and copy them into a cache.

    Args:
      root: an existing folder.
      recursive: also list the files of the folders in it.

    Raises:
      DataError: the folder is missing or unreadable, or a link leads outside or nowhere.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{'not a folder' if root.exists() else 'no such folder'}: {root}")
    real_root = root.resolve()
    names: list[str] = []
    hidden = 0

    def visit(folder: Path, prefix: str, seen: frozenset[Path]) -> None:
        nonlocal hidden
        try:
            with os.scandir(folder) as listing:
                entries = list(listing)
        except OSError as error:
            raise DataError(f"cannot list {folder}: {error.strerror or error}") from error
        for entry in entries:
            if _is_hidden(entry.name):
                hidden += 1
                continue
            if entry.is_symlink():
                _check_link(Path(entry.path), real_root)
            if entry.is_dir():
                real = Path(entry.path).resolve()
                if recursive and real not in seen:
                    visit(Path(entry.path), f"{prefix}{entry.name}/", seen | {real})
            else:
                names.append(prefix + entry.name)

    def read(name: str) -> bytes:
        return read_file(root / name)

    visit(root, "", frozenset({real_root}))
    return Tree(str(root), tuple(sorted(names)), hidden, read, lambda first, second: read(first) == read(second))


def open_archive(path: str | Path) -> Tree:
    """Lists the files of a zip archive, which is read in place and never extracted.

    Raises:
      DataError: not a zip archive; too many or too large members; a member with an absolute path, `..`, a link, a
        password, or a name that occurs twice (then the whole archive is refused, and the member named).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{'not a regular file' if path.exists() else 'no such file'}: {path}")
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise DataError(f"not a readable zip archive ({error}): {path}") from error
    members = [member for member in archive.infolist() if not member.is_dir()]
    _check_members(members, path)
    hidden = [member for member in members if any(_is_hidden(part) for part in PurePosixPath(member.filename).parts)]
    shown = {member.filename: member for member in members}
    for member in hidden:
        del shown[member.filename]

    def read(name: str) -> bytes:
        try:
            return archive.read(name)  # checks the stored CRC-32; safe to call from several threads
        except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
            raise DataError(f"cannot read {name} in {path}: {error}") from error

    def same(first: str, second: str) -> bool:  # by CRC: unpacking 2 GB to compare takes half a minute
        one, other = shown[first], shown[second]
        return (one.file_size, one.CRC) == (other.file_size, other.CRC)

    return Tree(str(path), tuple(sorted(shown)), len(hidden), read, same)


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yields `function(item)` in order, computed by a few threads: reading and hashing release the GIL."""
    with ThreadPoolExecutor(READ_THREADS) as pool:
        yield from pool.map(function, items)


def some(names: Iterable[str], limit: int = 10) -> str:
    """Returns up to `limit` names separated by commas, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def _check_link(link: Path, real_root: Path) -> None:
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise DataError(f"symbolic link that leads nowhere: {link}") from error
    if not target.is_relative_to(real_root):
        raise DataError(
            f"symbolic link to {target}, which is outside of {real_root}: {link}; "
            "copy the file, or pass the folder that holds the files themselves"
        )


def _check_members(members: list[zipfile.ZipInfo], path: Path) -> None:
    if len(members) > MAX_ARCHIVE_FILES:
        raise DataError(f"{len(members)} files in the archive, at most {MAX_ARCHIVE_FILES} are read: {path}")
    if (total := sum(member.file_size for member in members)) > MAX_ARCHIVE_BYTES:
        raise DataError(f"the archive unpacks to {total} bytes, at most {MAX_ARCHIVE_BYTES} are read: {path}")
    seen: set[str] = set()
    for member in members:
        name = member.filename
        parts = name.split("/")
        problem = None
        if "\\" in name or name.startswith("/") or ":" in parts[0] or ".." in parts or name != member.orig_filename:
            problem = "its path leads outside of the archive"
        elif stat.S_ISLNK(member.external_attr >> 16):
            problem = "it is a symbolic link"
        elif member.flag_bits & 0x1:
            problem = "it is encrypted"
        elif member.file_size > MAX_FILE_BYTES:
            problem = f"it unpacks to {member.file_size} bytes"
        elif name.lower() in seen:
            problem = "its name occurs twice"
        if problem:
            raise DataError(f"archive refused because of {name!r}: {problem}: {path}")
        seen.add(name.lower())
