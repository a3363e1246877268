"""The kaggle_3m tree and its zip: every slice once, paired by name, or an error that counts what is wrong."""

import os
import shutil

import numpy as np
import pytest

from data_pipeline import SourceOptions, open_source
from data_pipeline.source import DataError, Record
from data_pipeline.sources.kaggle import open_kaggle
from tests.helpers.trees import PATIENTS, encode, image_pixels, mask_pixels, write_kaggle, write_zip

PATIENT = "TCGA_CS_0001_20000101"
LONG = "TCGA_DU_0003_20000103"


@pytest.fixture
def tree(tmp_path):
    return write_kaggle(tmp_path / "kaggle_3m")


def test_every_slice_is_listed_once_with_patient_site_and_number(tree):
    source = open_kaggle(tree)
    assert source.kind == "kaggle_3m" and source.notes == ()
    assert source.title == "LGG MRI slices, kaggle_3m tree (real data)"
    assert len(source.records) == sum(PATIENTS.values())
    assert source.records[0] == Record("TCGA_CS_0001_20000101_1", "TCGA_CS_0001_20000101", 1, "CS", "")


def test_slices_are_in_numeric_order(tree):
    numbers = [record.slice for record in open_kaggle(tree).records if record.patient == LONG]
    assert numbers == list(range(1, 12))


def test_a_slice_reads_its_own_image_and_mask(tree):
    source = open_kaggle(tree, SourceOptions(size=(16, 16)))
    index = [record.name for record in source.records].index(f"{LONG}_10")
    image, mask = source.read(index)
    np.testing.assert_array_equal(image, image_pixels(310))
    np.testing.assert_array_equal(mask[:, :, 0], mask_pixels(310) > 0)
    (image_name, data), (mask_name, _) = source.files(index)
    assert (image_name, mask_name) == (f"{LONG}_10.tif", f"{LONG}_10_mask.tif")
    assert data == (tree / LONG / f"{LONG}_10.tif").read_bytes()


def test_the_folder_above_the_zip_and_a_copy_elsewhere_are_the_same_data(tree, tmp_path):
    zipped = write_zip(tmp_path / "archive.zip", tree, under=tmp_path)
    other = tmp_path / "other"
    shutil.copytree(tree, other / "deep" / "kaggle_3m")
    sources = [open_kaggle(place) for place in (tree, zipped, other, str(tree))]
    assert len({source.fingerprint() for source in sources}) == 1
    for source in sources[1:]:
        assert source.records == sources[0].records
        for ours, theirs in zip(sources[0].read(3), source.read(3), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_the_fingerprint_does_not_depend_on_the_order_of_listing(tree, monkeypatch):
    expected = open_kaggle(tree).fingerprint()
    listing = os.scandir

    class Shuffled(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", lambda folder: Shuffled(sorted(listing(folder), key=lambda e: e.name[::-1])))
    assert open_kaggle(tree).fingerprint() == expected


@pytest.mark.parametrize("zipped", [False, True])
def test_the_second_tree_of_the_archive_is_ignored_with_a_note(tree, tmp_path, zipped):
    alone = open_kaggle(tree).fingerprint()
    shutil.copytree(tree, tmp_path / "lgg-mri-segmentation" / "kaggle_3m")
    root = tmp_path
    if zipped:
        root = write_zip(tmp_path / "a.zip", tree, tmp_path / "lgg-mri-segmentation", under=tmp_path)
    source = open_kaggle(root)
    assert source.fingerprint() == alone
    count = 2 * sum(PATIENTS.values())
    assert f"ignored duplicate tree lgg-mri-segmentation/kaggle_3m: {count} files" in source.notes[0]
    assert all("lgg-mri" not in name for image, mask in source.pairs for _, name in (image, mask))


@pytest.mark.parametrize("zipped", [False, True])
def test_a_slice_that_is_there_twice_with_other_bytes_is_refused(tree, tmp_path, zipped):
    again = shutil.copytree(tree, tmp_path / "lgg-mri-segmentation" / "kaggle_3m")
    path = again / LONG / f"{LONG}_3_mask.tif"
    path.write_bytes(encode(mask_pixels(9)))
    root = write_zip(tmp_path / "a.zip", tree, again, under=tmp_path) if zipped else tmp_path
    with pytest.raises(DataError, match=f"duplicate slice {LONG}_3_mask differs"):
        open_kaggle(root)


def test_images_without_mask_and_masks_without_image_are_counted_and_named(tree):
    for number in (2, 10):
        (tree / LONG / f"{LONG}_{number}_mask.tif").unlink()
    # As many strays as are missing: pairing by order would not notice.
    for number in (90, 91):
        (tree / LONG / f"{LONG}_{number}_mask.tif").write_bytes(encode(mask_pixels(0)))
    with pytest.raises(DataError) as caught:
        open_kaggle(tree)
    message = str(caught.value)
    assert f"2 images have no mask: {LONG}_10, {LONG}_2;" in message
    assert f"2 masks have no image: {LONG}_90, {LONG}_91" in message


def test_no_more_than_ten_names_are_listed(tree):
    for path in sorted(tree.rglob("*_mask.tif"))[:13]:
        path.unlink()
    with pytest.raises(DataError, match=r"13 images have no mask: .* and 3 more") as caught:
        open_kaggle(tree)
    assert str(caught.value).count("TCGA_") == 10


def test_hidden_files_are_ignored_with_a_count(tree):
    for name in (".DS_Store", f"._{LONG}_1.tif", "Thumbs.db"):
        (tree / LONG / name).write_bytes(b"x")
    (tree / LONG / "notes.docx").write_bytes(b"x")
    source = open_kaggle(tree)
    assert source.notes == ("3 hidden files ignored", "1 files that are not TIFF ignored")
    assert len(source.records) == sum(PATIENTS.values())


def test_a_tiff_of_another_name_is_refused(tree):
    (tree / LONG / f"{LONG}_1_mask_mask.tif").write_bytes(encode(mask_pixels(0)))
    (tree / LONG / "a b.TIFF").write_bytes(encode(mask_pixels(0)))
    with pytest.raises(DataError, match=r"2 TIFF files .* are not named TCGA_.*_1_mask_mask\.tif.*a b\.TIFF"):
        open_kaggle(tree)


def test_upper_case_extensions_are_read(tree):
    path = tree / LONG / f"{LONG}_1.tif"
    path.rename(path.with_suffix(".TIF"))
    assert len(open_kaggle(tree).records) == sum(PATIENTS.values())


def test_a_place_without_slices_is_told_what_was_expected(tmp_path):
    (tmp_path / "kaggle").mkdir()
    (tmp_path / "kaggle" / "readme.txt").write_text("x")
    with pytest.raises(
        DataError, match=r"no slices below .*\(holds readme\.txt\); expected the kaggle_3m.*kaggle\.com.*TCGA_<site>"
    ):
        open_kaggle(tmp_path / "kaggle")
    with pytest.raises(DataError, match="no such folder"):
        open_kaggle(tmp_path / "missing")


def test_a_root_that_is_missing_is_never_replaced_by_synthetic_slices(tmp_path):
    for root in (tmp_path / "missing", str(tmp_path / "missing.zip"), ""):
        with pytest.raises(DataError, match=r"no such file or folder: '.*' .data\.root"):
            open_source(root, SourceOptions(size=(16, 16)))


def test_another_size_is_refused_unless_resizing_is_on(tree):
    with pytest.raises(DataError, match=r"image of 16x16, expected 8x24 pixels .*TCGA_CS_0001_20000101_1\.tif"):
        open_source(tree, SourceOptions(size=(8, 24))).read(0)
    image, mask = open_source(tree, SourceOptions(size=(8, 24), resize=True)).read(0)
    assert image.shape == (8, 24, 3) and mask.shape == (8, 24, 1)
