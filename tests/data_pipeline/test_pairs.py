"""Paired files: the fingerprint follows all that decides the pixels, and what cannot be read is named."""

import pytest

from data_pipeline.source import DataError, SourceOptions
from data_pipeline.sources.kaggle import open_kaggle
from data_pipeline.sources.pairs import parse_name
from tests.helpers.trees import encode, mask_pixels, write_kaggle

PATIENT = "TCGA_CS_0001_20000101"
LONG = "TCGA_DU_0003_20000103"


@pytest.fixture
def tree(tmp_path):
    return write_kaggle(tmp_path / "kaggle_3m")


def test_the_fingerprint_changes_with_every_byte_name_and_option(tree):
    prints = {open_kaggle(tree).fingerprint()}
    for options in ({"size": (16, 16)}, {"channels": 1}, {"resize": True}, {"mask_threshold": 0}):
        prints.add(open_kaggle(tree, SourceOptions(**options)).fingerprint())
    path = tree / LONG / f"{LONG}_4_mask.tif"
    data = bytearray(path.read_bytes())
    data[-1] ^= 255
    path.write_bytes(data)
    prints.add(open_kaggle(tree).fingerprint())
    for suffix in (".tif", "_mask.tif"):
        (tree / LONG / f"{LONG}_11{suffix}").rename(tree / LONG / f"{LONG}_12{suffix}")
    prints.add(open_kaggle(tree).fingerprint())
    assert len(prints) == 7


def test_a_mask_of_another_size_than_its_image_is_refused(tree):
    (tree / LONG / f"{LONG}_1_mask.tif").write_bytes(encode(mask_pixels(0, (16, 15))))
    source = open_kaggle(tree, SourceOptions(size=(16, 16), resize=True))
    with pytest.raises(DataError, match="image of 16x16 but mask of 16x15"):
        source.read([record.name for record in source.records].index(f"{LONG}_1"))


def test_a_file_that_vanishes_or_is_damaged_is_named(tree):
    source = open_kaggle(tree)
    image, mask = (tree / PATIENT / f"{PATIENT}_1{suffix}.tif" for suffix in ("", "_mask"))
    mask.write_bytes(mask.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"truncated: .*{mask.name}"):
        source.read(0)
    image.unlink()
    with pytest.raises(DataError, match=rf"cannot read .*{image.name}: No such file"):
        source.read(0)
    with pytest.raises(DataError, match="No such file"):
        source.fingerprint()


@pytest.mark.parametrize(
    "name", ["TCGA_CS_0001_20000101", "TCGA_CS_0001_20000101_1_mask", "tcga_CS_0001_20000101_1", "x"]
)
def test_other_names_are_no_patients_of_their_own(name):
    with pytest.raises(DataError, match="expected a name like"):
        parse_name(name)


def test_the_fingerprint_reads_every_file_once_and_sees_what_has_changed_since(tree):
    source, read = open_kaggle(tree), []
    files = source.files
    source.files = lambda index: read.append(index) or files(index)
    before = source.fingerprint()
    assert sorted(read) == list(range(len(source.records)))
    path = tree / LONG / f"{LONG}_4.tif"
    path.write_bytes(path.read_bytes() + b"x")
    assert source.fingerprint() != before
