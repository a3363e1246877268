"""The TFDS builder, run through `prepare`."""

import numpy as np
import pytest

from data_pipeline.prepare import prepare
from data_pipeline.source import DataError
from tests.helpers.trees import Slices, replaced


def test_the_order_of_the_source_is_kept_over_several_files(tmp_path, monkeypatch):
    from data_pipeline.lgg_mri import builder

    monkeypatch.setattr(builder, "SHARD_BYTES", 3 * 8 * 6 * 4)
    source = Slices()
    prepared = prepare(source, tmp_path, progress=False)
    assert len(list(prepared.path.glob("*.array_record-*-of-00004"))) == 4
    assert [entry.name for entry in prepared.entries] == [record.name for record in source.records]
    assert all((prepared[index]["image"] == source.read(index)[0]).all() for index in range(10))


def test_tfds_reads_the_same_features(tmp_path):
    import tensorflow_datasets as tfds

    prepared = prepare(Slices(), tmp_path, progress=False)
    data = tfds.builder_from_directory(str(prepared.path)).as_data_source("slices")
    assert len(data) == 10
    for index, entry in enumerate(prepared.entries):
        np.testing.assert_array_equal(data[index]["image"], prepared[index]["image"])
        np.testing.assert_array_equal(data[index]["mask"], prepared[index]["mask"])
        text = {key: data[index][key].decode() for key in ("name", "patient", "site", "digest")}
        assert text == {key: getattr(entry, key) for key in text}
        assert data[index]["slice"] == entry.slice


class TestBadSources:
    def message(self, source, tmp_path):
        with pytest.raises(DataError) as caught:
            prepare(source, tmp_path, progress=False)
        assert not list(tmp_path.rglob("incomplete*"))
        assert not list(tmp_path.rglob("*array_record*"))
        return str(caught.value)

    def test_no_slices(self, tmp_path):
        assert self.message(Slices(count=0), tmp_path).startswith("no slices: tiny slices of a test holds 0 images")

    def test_a_name_twice(self, tmp_path):
        assert "slice s_001 appears 2 times" in self.message(replaced(Slices(), 4, name="s_001"), tmp_path)

    def test_a_slice_number_beyond_32_bits(self, tmp_path):
        assert "s_004 has the number 19960909000012" in self.message(
            replaced(Slices(), 4, slice=19960909000012), tmp_path
        )

    @pytest.mark.parametrize(
        ("image", "mask", "message"),
        [
            (np.zeros((8, 7, 3), np.uint8), np.zeros((8, 6, 1), np.uint8), "image is uint8[8, 7, 3], but that of"),
            (np.zeros((8, 6, 3), np.float32), np.zeros((8, 6, 1), np.uint8), "image is float32[8, 6, 3], but that of"),
            (np.zeros((8, 6, 3), np.uint8), np.zeros((6, 8, 1), np.uint8), "mask is uint8[6, 8, 1], but that of"),
            (np.zeros((8, 6, 3), np.uint8), np.full((8, 6, 1), 255, np.uint8), "mask holds the value 255"),
        ],
    )
    def test_a_slice_unlike_the_first_is_named(self, tmp_path, image, mask, message):
        source = Slices()
        read = source.read
        source.read = lambda index: (image, mask) if index == 5 else read(index)
        assert f"slice s_005: {message}" in self.message(source, tmp_path)

    def test_a_file_that_cannot_be_read_is_the_message_and_the_next_run_works(self, tmp_path):
        source = Slices()
        read = source.read

        def broken(index):
            if index == 5:
                raise DataError("s_005.tif is truncated")
            return read(index)

        source.read = broken
        assert self.message(source, tmp_path) == "s_005.tif is truncated"
        assert len(prepare(Slices(), tmp_path, progress=False)) == 10


def test_preparing_prints_nothing_of_tfds(tmp_path, capfd):
    prepare(Slices(count=2), tmp_path)
    assert capfd.readouterr() == ("", "")


def test_preparing_asks_no_network_and_leaves_nothing_outside_the_cache(tmp_path, monkeypatch):
    from tensorflow_datasets.core.utils import gcs_utils

    asked = []
    monkeypatch.setattr(gcs_utils, "exists", lambda path: bool(asked.append(path)))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    prepared = prepare(Slices(count=2), tmp_path / "cache", progress=False)
    assert asked == []
    assert not list((tmp_path / "temporary").iterdir())
    files = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    records = "lgg_mri-slices.array_record-00000-of-00001"
    lock = f"{prepared.path.parents[1].name}.lock"
    assert files == {lock, "dataset_info.json", "features.json", "metadata.json", records}
