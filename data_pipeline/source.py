"""What every source of slices offers, and the one error that bad data raises."""

import dataclasses
import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np


class DataError(ValueError):
    """The data cannot be used; the message names the file, what was found, what was expected and what to do."""

    exit_code = 1


class UsageError(ValueError):
    """What is asked for makes no sense, whatever the data; exit code 2."""

    exit_code = 2


@dataclasses.dataclass(frozen=True)
class Record:
    """One slice, as its source names it.

    Attributes:
      name: unique within the source, without extension, for example `TCGA_CS_4941_19960909_12`.
      patient: the patient the slice belongs to, for example `TCGA_CS_4941_19960909`; empty where the name tells none.
      slice: position of the slice in the patient's volume.
      site: the institution that acquired it (`CS`, `DU`, ...), empty where unknown.
      subset: `"train"` or `"test"` where folders fix the split, else empty.
    """

    name: str
    patient: str
    slice: int
    site: str = ""
    subset: str = ""


class Source(Protocol):
    """Slices with their masks, in a fixed order, addressed by index.

    Attributes:
      kind: `"kaggle_3m"`, `"folders"` or `"synthetic"`.
      title: one line that is printed, saved with every run and shown on every figure.
      notes: what was ignored or looked odd, one sentence each.
      records: the slices, sorted by patient, slice and name.
    """

    kind: str
    title: str
    notes: Sequence[str]
    records: Sequence[Record]

    def fingerprint(self) -> str:
        """Returns a sha256 hex digest of names, bytes and decoding options; independent of where the files lie."""
        ...

    def reading(self) -> AbstractContextManager[None]:
        """While entered, files are read for the next `fingerprint`, beside what the caller does; left, no more are."""
        ...

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns image `uint8[H, W, C]` and mask `uint8[H, W, 1]` in {0, 1}; called from several threads.

        Raises:
          DataError: the slice cannot be used.
        """
        ...


def content_digest(image: np.ndarray, mask: np.ndarray) -> str:
    """Returns the sha256 hex digest of the bytes of an image followed by its mask."""
    digest = hashlib.sha256(np.ascontiguousarray(image).data)
    digest.update(np.ascontiguousarray(mask).data)
    return digest.hexdigest()
