"""The TFDS builder that turns a source of slices into ArrayRecord files, without TensorFlow."""

import collections
import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_pipeline.lgg_mri import NAME, SPLIT, VERSION
from data_pipeline.prepared import Entry
from data_pipeline.source import DataError, Source, source_kind

SHARD_BYTES = 64 << 20


class LggMri(tfds.core.ShardBasedBuilder):
    """Slices with masks, in the order of their source, about 64 MiB per file.

    Built shard by shard: TFDS's generator-based builder first collects the whole set in memory, and beyond 1 GB (the
    Kaggle set has 1.03 GB) it spills to disk through TensorFlow.
    """

    name = NAME
    VERSION = tfds.core.Version(VERSION)

    def __init__(self, *, source: Source, data_dir: str | Path, extra: Mapping[str, Any], advance: Callable[[], None]):
        """Prepares nothing yet.

        Args:
          source: not empty; its first slice fixes the shape of all.
          data_dir: TFDS writes below it, to `lgg_mri/<version>`.
          extra: written to `metadata.json` next to the records, with one row per slice under `"entries"`.
          advance: called after each slice.
        """
        self._source = source
        self._advance = advance
        self._extra = dict(extra)
        image, mask = source.read(0)
        self._shapes = image.shape, mask.shape
        super().__init__(data_dir=str(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        image, mask = self._shapes
        kind = source_kind(self._source.kind)
        return _LocalInfo(
            builder=self,
            description=self._source.title,
            features=tfds.features.FeaturesDict(
                {
                    # Raw bytes: ArrayRecord compresses already, and every other encoding is slower to read.
                    "image": tfds.features.Tensor(shape=image, dtype=np.uint8, encoding="bytes"),
                    "mask": tfds.features.Tensor(shape=mask, dtype=np.uint8, encoding="bytes"),
                    "name": tfds.features.Text(),
                    "patient": tfds.features.Text(),
                    "slice": np.int32,
                    "site": tfds.features.Text(),
                    "digest": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "mask"),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(self._extra),
            homepage=kind.homepage,
            citation=kind.citation,
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> Mapping[str, Sequence[Callable[[], Iterator]]]:
        del dl_manager  # nothing is downloaded
        count = len(self._source.records)
        slice_bytes = sum(int(np.prod(shape)) for shape in self._shapes)
        per_shard = max(1, SHARD_BYTES // slice_bytes)
        self.info.metadata["entries"] = []
        self.info.metadata["shape"] = list(self._shapes[0])
        self.info.metadata["mask_shape"] = list(self._shapes[1])
        return {
            SPLIT: [
                functools.partial(self._examples, start, min(start + per_shard, count))
                for start in range(0, count, per_shard)
            ]
        }

    def _examples(self, start: int, stop: int) -> Iterator[tuple[int, dict[str, Any]]]:
        indices = range(start, stop)
        for index, (image, mask, entry) in zip(indices, _read_ahead(self._source, indices), strict=True):
            self._check(entry.name, image, mask)
            self.info.metadata["entries"].append(list(dataclasses.astuple(entry)))
            stored = {name: getattr(entry, name) for name in ("name", "patient", "slice", "site", "digest")}
            yield index, {"image": image, "mask": mask, **stored}
            self._advance()

    def _check(self, name: str, image: np.ndarray, mask: np.ndarray) -> None:
        for what, array, shape in (("image", image, self._shapes[0]), ("mask", mask, self._shapes[1])):
            if array.shape != shape or array.dtype != np.uint8:
                first = self._source.records[0].name
                raise DataError(
                    f"slice {name}: {what} is {array.dtype}{list(array.shape)}, but that of slice {first} is "
                    f"uint8{list(shape)}; all slices must have one size: give a size and switch resizing on"
                )
        if mask.max(initial=0) > 1:
            raise DataError(f"slice {name}: mask holds the value {mask.max()}, expected 0 and 1 only")

    def _log_download_bytes(self) -> None:
        """Keeps TFDS from printing an unknown download size."""

    def _log_download_done(self) -> None:
        """Keeps TFDS from printing; the caller prints what was written."""


class _LocalInfo(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Skips TFDS's search for the dataset on the network."""

    def write_to_directory(self, dataset_info_dir: Any, all_metadata: bool = True) -> None:
        """Writes as TFDS does, then flushes: the content must be on the disk before the folder gets its final name."""
        super().write_to_directory(dataset_info_dir, all_metadata)
        for path in Path(os.fspath(dataset_info_dir)).iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _read_ahead(source: Source, indices: range) -> Iterator[tuple[np.ndarray, np.ndarray, Entry]]:
    """Yields image, mask and entry in order, read by a few threads and never far ahead of their use."""

    def read(index: int) -> tuple[np.ndarray, np.ndarray, Entry]:
        image, mask = source.read(index)
        return image, mask, Entry.of(source.records[index], image, mask)

    threads = min(8, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads)
    try:
        ahead = collections.deque(pool.submit(read, index) for index in indices[: 2 * threads])
        for index in range(indices.start + 2 * threads, indices.stop + 2 * threads):
            result = ahead.popleft().result()
            if index < indices.stop:
                ahead.append(pool.submit(read, index))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def build(builder: LggMri) -> None:
    """Runs `download_and_prepare`: writes to `incomplete.*`, then renames; removes its own files when it fails."""
    downloads = Path(os.fspath(builder.data_path)).parent / "downloads"
    builder.download_and_prepare(
        download_dir=downloads, download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    for folder in (downloads / "extracted", downloads):  # TFDS creates them and leaves them empty
        with contextlib.suppress(OSError):
            folder.rmdir()
