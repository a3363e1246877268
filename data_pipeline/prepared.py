"""Prepared data: slices in ArrayRecord files, read by index; nothing here imports TFDS or writes."""

import dataclasses
import hashlib
import json
import operator
import os
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError

from data_pipeline.lgg_mri import NAME, SPLIT
from data_pipeline.source import DataError, Record

METADATA = "metadata.json"


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is known of one slice without reading its pixels; a row of `metadata.json`."""

    name: str  # this and the next four: as in data_pipeline.source.Record
    patient: str
    slice: int
    site: str
    subset: str
    positives: int  # pixels set in the mask
    digest: str  # sha256 of the decoded image's bytes followed by the mask's

    @classmethod
    def of(cls, record: Record, image: np.ndarray, mask: np.ndarray) -> "Entry":
        """Returns the entry of a slice that was read."""
        digest = hashlib.sha256(np.ascontiguousarray(image).data)
        digest.update(np.ascontiguousarray(mask).data)
        return cls(**vars(record), positives=int(mask.sum()), digest=digest.hexdigest())


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared dataset: random access by index, from any number of threads.

    `prepared[i]` is `{"image": uint8[H, W, C], "mask": uint8[H, W, 1] in {0, 1}, "patient": int32, "slice": int32}`;
    the arrays are read-only. It raises `DataError` with the slice's name when the record cannot be read.
    """

    path: Path  # the folder that holds the records
    kind: str  # this, title and notes: as in data_pipeline.source.Source
    title: str
    notes: tuple[str, ...]
    fingerprint: str  # of the source
    entries: tuple[Entry, ...] = dataclasses.field(repr=False)
    patients: tuple[str, ...] = dataclasses.field(repr=False)  # sorted; a batch's "patient" is an index into them
    shape: tuple[int, int, int]  # (height, width, channels) of every image
    mask_shape: tuple[int, int, int]  # (height, width, 1)
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
                f"slice {self.entries[index].name}: cannot read record {index} of {self.path}: {one_line(error)}; "
                "remove that folder and prepare the data again"
            ) from error

    def record(self, index: int) -> bytes:
        """Returns one slice as it is stored."""
        return self._records[index]

    def decode(self, record: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Returns image and mask of a record; raises ValueError or KeyError."""
        fields = parse_example(record)
        image, mask = (np.frombuffer(fields[name], np.uint8) for name in ("image", "mask"))
        return image.reshape(self.shape), mask.reshape(self.mask_shape)


def default_cache_dir() -> Path:
    """Returns `$XDG_CACHE_HOME/jaxunet`, or `~/.cache/jaxunet` where that is unset or relative."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "jaxunet"


def open_prepared(path: str | Path) -> Prepared:
    """Opens a prepared folder; reads no pixels.

    Raises:
      DataError: the folder is missing, was written by another version or is damaged.
    """
    # Only here: it takes a quarter of a second, which programs that print their --help need not wait for.
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    path = Path(path)
    try:
        saved = json.loads((path / METADATA).read_text())
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
            f"no prepared dataset in {path}: {METADATA} is missing; prepare the data again, "
            "and remove that folder first if it exists"
        ) from error
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"the prepared dataset {path} is damaged ({one_line(error)}); remove that folder and prepare the data again"
        ) from error


# tf.train.Example reduced to bytes features. The full class comes with TFDS, which takes a second to import.
_EXAMPLE_PROTO = """
name: "example.proto" syntax: "proto3"
message_type { name: "BytesList" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: "Feature" field { name: "bytes_list" number: 1 type: TYPE_MESSAGE type_name: ".BytesList" } }
message_type {
  name: "Features"
  field { name: "feature" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: ".Features.FeatureEntry" }
  nested_type {
    name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 type: TYPE_STRING }
    field { name: "value" number: 2 type: TYPE_MESSAGE type_name: ".Feature" }
  }
}
message_type { name: "Example" field { name: "features" number: 1 type: TYPE_MESSAGE type_name: ".Features" } }
"""
_pool = descriptor_pool.DescriptorPool()  # the default pool may hold TensorFlow's messages
_pool.Add(text_format.Parse(_EXAMPLE_PROTO, descriptor_pb2.FileDescriptorProto()))
_Example = message_factory.GetMessageClass(_pool.FindMessageTypeByName("Example"))


def parse_example(record: bytes) -> dict[str, bytes]:
    """Returns the bytes features of a serialized `tf.train.Example`; others are left out.

    Raises:
      ValueError: the bytes are not an Example.
    """
    try:
        features = _Example.FromString(record).features.feature
    except DecodeError as error:
        raise ValueError(f"not an Example: {error}") from error
    return {name: feature.bytes_list.value[0] for name, feature in features.items() if feature.bytes_list.value}


def one_line(error: BaseException) -> str:
    """Returns the message of an error without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
