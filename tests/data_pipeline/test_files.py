"""Folders and archives are read without following anything that leads outside."""

import stat
import time
import zipfile

import pytest

from data_pipeline.files import READ_THREADS, in_threads
from data_pipeline.source import DataError
from data_pipeline.sources.kaggle import open_kaggle
from tests.helpers.trees import PATIENTS, write_kaggle, write_zip

PATIENT = "TCGA_CS_0001_20000101"
LONG = "TCGA_DU_0003_20000103"


@pytest.fixture
def tree(tmp_path):
    return write_kaggle(tmp_path / "kaggle_3m")


def test_links_that_leave_the_tree_are_refused_and_others_followed(tree, tmp_path):
    outside = tmp_path / "private.tif"
    target = tree / LONG / f"{LONG}_1.tif"
    target.rename(outside)
    target.symlink_to(outside)
    with pytest.raises(DataError, match=r"symbolic link to .*private\.tif, which is outside"):
        open_kaggle(tree)
    target.unlink()
    target.symlink_to(tree / LONG / "gone")
    with pytest.raises(DataError, match="leads nowhere"):
        open_kaggle(tree)
    target.unlink()
    outside.rename(tree / LONG / "pixels.bin")
    target.symlink_to("pixels.bin")
    (tree / LONG / "up").symlink_to("..", target_is_directory=True)  # a loop
    assert len(open_kaggle(tree).records) == sum(PATIENTS.values())
    (tmp_path / "link").symlink_to(tree, target_is_directory=True)
    assert len(open_kaggle(tmp_path / "link").records) == sum(PATIENTS.values())


def member(name: str, **changes) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("x")
    info.filename = name  # the constructor would clean it up
    for key, value in changes.items():
        setattr(info, key, value)
    return info


BAD_MEMBERS = {
    "parent": (member("../evil.tif"), "leads outside"),
    "inner parent": (member("kaggle_3m/../../evil.tif"), "leads outside"),
    "absolute": (member("/tmp/evil.tif"), "leads outside"),
    "drive": (member("C:/evil.tif"), "leads outside"),
    "backslash": (member("a\\..\\evil.tif"), "leads outside"),
    "link": (member("evil.tif", external_attr=(stat.S_IFLNK | 0o777) << 16, create_system=3), "symbolic link"),
    "twice": (member(f"KAGGLE_3M/{LONG}/{LONG}_1.tif"), "occurs twice"),
}


@pytest.mark.parametrize("case", BAD_MEMBERS)
def test_an_archive_with_a_dishonest_member_is_refused_whole(tree, tmp_path, case):
    info, message = BAD_MEMBERS[case]
    path = write_zip(tmp_path / "a.zip", tree, under=tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, b"x")
    with pytest.raises(DataError, match=f"archive refused because of .*{message}"):
        open_kaggle(path)


def test_an_archive_that_unpacks_to_too_much_is_refused(tree, tmp_path, monkeypatch):
    path = write_zip(tmp_path / "a.zip", tree, under=tmp_path)
    monkeypatch.setattr("data_pipeline.files.MAX_ARCHIVE_BYTES", 10_000)
    with pytest.raises(DataError, match=r"unpacks to .* bytes, at most 10000"):
        open_kaggle(path)
    monkeypatch.setattr("data_pipeline.files.MAX_ARCHIVE_FILES", 3)
    with pytest.raises(DataError, match="files in the archive, at most 3"):
        open_kaggle(path)


def test_a_damaged_archive_is_an_error_that_names_the_member(tree, tmp_path):
    path = write_zip(tmp_path / "a.zip", tree, under=tmp_path)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"kaggle_3m/{PATIENT}/{PATIENT}_1.tif")
    data = bytearray(path.read_bytes())
    data[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 16
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"cannot read .*{PATIENT}_1\.tif in .*a\.zip"):
        open_kaggle(path).read(0)
    path.write_bytes(data[:-30])
    with pytest.raises(DataError, match="not a readable zip archive"):
        open_kaggle(path)


def test_nothing_is_written_beside_an_archive_that_is_read(tree, tmp_path):
    path = write_zip(tmp_path / "a.zip", tree, under=tmp_path)
    before = sorted(tmp_path.rglob("*"))
    source = open_kaggle(path)
    source.fingerprint()
    source.read(0)
    assert sorted(tmp_path.rglob("*")) == before


def test_work_after_an_interruption_is_not_begun():
    begun = []
    results = in_threads(lambda item: begun.append(item) or time.sleep(0.01), range(100))
    next(results)
    results.close()
    assert READ_THREADS <= len(begun) < 50
