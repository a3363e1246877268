"""Prepared data are read by index from any thread, and damage is found on opening or named with its slice."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.prepare import prepare
from data_pipeline.prepared import default_cache_dir, open_prepared, parse_example
from data_pipeline.source import DataError
from tests.data_pipeline.test_prepare import run
from tests.helpers.trees import Slices


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare(Slices(), tmp_path_factory.mktemp("cache"), progress=False)


def test_opening_the_folder_alone_gives_the_same_dataset(prepared):
    assert open_prepared(prepared.path) == prepared


def test_an_index_out_of_range_is_an_index_error_so_that_iteration_ends(prepared):
    assert sum(1 for _ in prepared) == 10
    for index in (-1, 10):
        with pytest.raises(IndexError):
            prepared[index]


def test_threads_read_what_one_thread_reads(prepared):
    wanted = [prepared[index]["image"].copy() for index in range(10)]
    order = np.random.default_rng(0).integers(0, 10, 2000).tolist()
    with ThreadPoolExecutor(8) as pool:
        for index, got in zip(order, pool.map(prepared.__getitem__, order), strict=True):
            np.testing.assert_array_equal(got["image"], wanted[index])


@given(st.dictionaries(st.text(max_size=5), st.binary(max_size=300), max_size=4), st.data())
def test_examples_are_parsed_as_protobuf_parses_them(features, data):
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    for key, value in features.items():
        example.features.feature[key].bytes_list.value.append(value)
    example.features.feature["number"].int64_list.value.append(2**40)
    record = example.SerializeToString()
    got = parse_example(record)
    assert {key: bytes(value) for key, value in got.items()} == {
        key: value for key, value in features.items() if key != "number"
    }
    cut = record[: data.draw(st.integers(0, len(record) - 1))]
    if cut:
        with pytest.raises(ValueError):
            parse_example(cut)


def test_prepared_data_goes_to_the_user_cache_by_default(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "jaxunet"
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert default_cache_dir() == Path.home() / ".cache" / "jaxunet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "jaxunet"


class TestDamage:
    @pytest.fixture
    def folder(self, tmp_path):
        return prepare(Slices(count=40, size=(64, 64)), tmp_path, progress=False).path

    def test_a_truncated_file_is_found_on_opening(self, folder):
        (file,) = folder.glob("*array_record*")
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(DataError, match=r"is damaged \(.*\); remove that folder and prepare the data again"):
            open_prepared(folder)

    def test_flipped_bytes_name_the_slice_that_is_lost(self, folder):
        (file,) = folder.glob("*array_record*")
        content = bytearray(file.read_bytes())
        for at in range(len(content) // 3, len(content) // 3 + 64):
            content[at] ^= 255
        file.write_bytes(content)
        prepared, lost, source = open_prepared(folder), [], Slices(count=40, size=(64, 64))
        for index in range(40):
            try:
                np.testing.assert_array_equal(prepared[index]["image"], source.read(index)[0])
            except DataError as error:
                assert f"slice s_{index:03d}: cannot read record {index} of {folder}" in str(error)
                lost.append(index)
        assert 1 <= len(lost) <= 2

    def test_a_missing_file_is_found_on_opening(self, folder):
        next(folder.glob("*array_record*")).unlink()
        with pytest.raises(DataError, match="is damaged"):
            open_prepared(folder)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"entries": [[1]]}', '{"entries": 3}', "\x00"])
    def test_a_damaged_description_is_found_on_opening(self, folder, text):
        (folder / "metadata.json").write_text(text)
        with pytest.raises(DataError, match="is damaged"):
            open_prepared(folder)

    def test_a_description_of_another_number_of_slices_is_found_on_opening(self, folder):
        saved = json.loads((folder / "metadata.json").read_text())
        saved["entries"].pop()
        (folder / "metadata.json").write_text(json.dumps(saved))
        with pytest.raises(DataError, match="40 records for 39 slices"):
            open_prepared(folder)

    def test_a_folder_without_a_dataset_is_said(self, tmp_path):
        with pytest.raises(DataError, match=r"no prepared dataset in .*metadata\.json is missing"):
            open_prepared(tmp_path)


def test_opening_needs_no_tfds_and_is_fast_for_4000_slices(tmp_path):
    prepared = prepare(Slices(count=4000, size=(4, 4)), tmp_path, progress=False)
    result = run(
        "import time\nfrom data_pipeline.prepared import open_prepared\n"
        "import array_record.python.array_record_data_source\n"
        "start = time.process_time()\nprepared = open_prepared(sys.argv[1])\n"
        "assert len(prepared) == 4000\nprint(time.process_time() - start)\n"
        "assert not {'tensorflow_datasets', 'grain', 'jax'} & set(sys.modules)",
        prepared.path,
    )
    assert float(result.stdout) < 0.2
