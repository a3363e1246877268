"""Image and mask folders are paired by name, whatever their formats, or refused with the names that do not fit."""

import numpy as np
import pytest

from data_pipeline import SourceOptions, open_source
from data_pipeline.source import DataError, Record, UsageError
from data_pipeline.sources.folders import find_pairs, open_folders
from tests.helpers.trees import image_pixels, mask_pixels, write_pictures

SLICE = "TCGA_CS_0001_20000101_12"


def write_pair(root, images, masks):
    """Writes random pictures under the given names, seeds in order. Returns the pair."""
    write_pictures(root / "image", {name: image_pixels(seed) for seed, name in enumerate(images)})
    write_pictures(root / "mask", {name: mask_pixels(seed) for seed, name in enumerate(masks)})
    return ("", root / "image", root / "mask")


def test_pictures_of_every_format_are_paired_by_name_with_or_without_suffix(tmp_path):
    images = ["a.png", "b.TIF", "c.bmp", "d.jpeg", "e.tiff", "f 1.jpg", "ü.PNG"]
    masks = ["a.png", "b_mask.png", "c_mask.tif", "d.bmp", "e_mask.TIFF", "f 1.png", "ü_mask.Png"]
    source = open_folders([write_pair(tmp_path, images, masks)])
    assert source.kind == "folders" and len(source.records) == 7
    for index, record in enumerate(source.records):
        seed = next(i for i, name in enumerate(images) if name.rsplit(".", 1)[0] == record.name)
        image, mask = source.read(index)
        np.testing.assert_array_equal(mask[:, :, 0], mask_pixels(seed) > 0)
        if record.name not in ("d", "f 1"):
            np.testing.assert_array_equal(image, image_pixels(seed))


def test_an_image_whose_own_name_ends_in_mask_keeps_it(tmp_path):
    source = open_folders([write_pair(tmp_path, ["x_mask.png", "x.png"], ["x_mask.png", "x.png"])])
    assert [record.name for record in source.records] == ["x", "x_mask"]
    np.testing.assert_array_equal(source.read(1)[1][:, :, 0], mask_pixels(0) > 0)


def test_pairs_do_not_depend_on_the_order_of_names(tmp_path):
    # Sorted, "a_mask" stands after "a1_mask" while "a" stands before "a1".
    source = open_folders(
        [write_pair(tmp_path, ["a.png", "a1.png", "A.png"], ["a_mask.png", "a1_mask.png", "A_mask.png"])]
    )
    assert [record.name for record in source.records] == ["A", "a", "a1"]
    for index, seed in enumerate((2, 0, 1)):
        np.testing.assert_array_equal(source.read(index)[1][:, :, 0], mask_pixels(seed) > 0)


def test_patient_slice_and_site_are_read_from_the_name(tmp_path):
    names = [SLICE, "phantom_S2_0003_7", "case-4_010", "scan", "pat 1-3", "x_mask_2"]
    source = open_folders([write_pair(tmp_path, [f"{n}.png" for n in names], [f"{n}.png" for n in names])])
    found = {record.name: record for record in source.records}
    assert found[SLICE] == Record(SLICE, "TCGA_CS_0001_20000101", 12, "CS")
    assert found["phantom_S2_0003_7"] == Record("phantom_S2_0003_7", "phantom_S2_0003", 7, "S2")
    assert found["case-4_010"] == Record("case-4_010", "case-4", 10)
    assert found["pat 1-3"] == Record("pat 1-3", "pat 1", 3)
    assert found["x_mask_2"] == Record("x_mask_2", "x_mask", 2)
    assert found["scan"] == Record("scan", "", 0)


def test_numbered_slices_are_in_numeric_order(tmp_path):
    names = [f"p_{number}.png" for number in (10, 9, 1, 100)]
    source = open_folders([write_pair(tmp_path, names, names)])
    assert [record.slice for record in source.records] == [1, 9, 10, 100]


def test_the_documented_layout_fixes_training_and_test(tmp_path):
    for subset in ("train", "test"):
        write_pair(tmp_path / "BrainTumor" / subset, [f"{subset}_1.png"], [f"{subset}_1.png"])
    source = open_source(tmp_path / "BrainTumor", SourceOptions(size=(8, 8)))
    assert {record.name: record.subset for record in source.records} == {"train_1": "train", "test_1": "test"}
    assert source.title == "image and mask folders, BrainTumor"
    image, mask = source.read(0)
    assert image.shape == (8, 8, 3) and mask.shape == (8, 8, 1), "folders are resized unless told otherwise"
    with pytest.raises(DataError, match="expected 8x8"):
        open_source(tmp_path / "BrainTumor", SourceOptions(size=(8, 8), resize=False)).read(0)


def test_a_single_pair_of_folders_is_recognised(tmp_path):
    _, image, mask = write_pair(tmp_path, ["a.png"], ["a.png"])
    assert find_pairs(tmp_path) == [("", image, mask)]
    image.rename(tmp_path / "images")
    assert find_pairs(tmp_path) == [("", tmp_path / "images", mask)]
    assert find_pairs(mask) is None


def test_a_missing_folder_is_named(tmp_path):
    for subset in ("train", "test"):
        write_pair(tmp_path / subset, ["a_1.png"], ["a_1.png"])
    (tmp_path / "test" / "mask").rename(tmp_path / "masks elsewhere")
    with pytest.raises(DataError, match=r"no such folder: .*test/mask"):
        open_source(tmp_path)
    (tmp_path / "test" / "image").rename(tmp_path / "images elsewhere")
    with pytest.raises(DataError, match=r"no such folder: .*test/image"):
        open_source(tmp_path)
    with pytest.raises(DataError, match=r"no such folder: .*nowhere"):
        open_source(None, pairs=[("", tmp_path / "nowhere", tmp_path / "train" / "mask")])


def test_an_empty_folder_is_named(tmp_path):
    pair = write_pair(tmp_path, ["a.png"], ["a.png"])
    (tmp_path / "mask" / "a.png").rename(tmp_path / "mask" / "a.txt")
    with pytest.raises(DataError, match=r"no pictures .*\.bmp.* in .*mask"):
        open_folders([pair])


def test_a_file_instead_of_a_folder_is_named(tmp_path):
    _, image, mask = write_pair(tmp_path, ["a.png"], ["a.png"])
    with pytest.raises(DataError, match=r"not a folder: .*a\.png"):
        open_folders([("", image / "a.png", mask)])


def test_what_does_not_pair_is_counted_and_named(tmp_path):
    pair = write_pair(tmp_path, ["a.png", "b.png", "c.png"], ["a.png", "b_1.png", "d_mask.png"])
    with pytest.raises(DataError) as caught:
        open_folders([pair])
    message = str(caught.value)
    assert "2 images have no mask: b, c;" in message and "2 masks have no image: b_1, d" in message
    assert str(tmp_path / "mask") in message


def test_two_images_of_one_name_are_refused(tmp_path):
    pair = write_pair(tmp_path, ["a.png", "a.tif"], ["a.png"])
    with pytest.raises(DataError, match=r"two pictures named a in .*image: a\.png and a\.tif"):
        open_folders([pair])


def test_two_masks_of_one_image_are_refused(tmp_path):
    pair = write_pair(tmp_path, ["a.png"], ["a.png", "a_mask.png"])
    with pytest.raises(DataError, match=r"two masks for a in .*mask: a\.png and a_mask\.png"):
        open_folders([pair])


def test_one_folder_may_hold_images_and_masks(tmp_path):
    write_pictures(tmp_path / "all", {"a_1.png": image_pixels(1), "a_1_mask.png": mask_pixels(1)})
    source = open_folders([("", tmp_path / "all", tmp_path / "all")])
    assert [record.name for record in source.records] == ["a_1"]
    np.testing.assert_array_equal(source.read(0)[1][:, :, 0], mask_pixels(1) > 0)


def test_the_same_name_in_training_and_test_folder_stays_two_slices(tmp_path):
    pairs = []
    for subset in ("train", "test"):
        _, image, mask = write_pair(tmp_path / subset, ["1.png", f"{subset}.png"], ["1.png", f"{subset}.png"])
        pairs.append((subset, image, mask))
    assert sorted(record.name for record in open_folders(pairs).records) == ["test", "test-1", "train", "train-1"]
    with pytest.raises(DataError, match="2 slices have the same name in two folders: train-1, train-train"):
        open_folders([pairs[0], pairs[0]])


def test_hidden_and_other_files_are_counted_and_subfolders_not_entered(tmp_path):
    pair = write_pair(tmp_path, ["a.png"], ["a.png"])
    (tmp_path / "image" / ".DS_Store").write_text("")
    (tmp_path / "image" / "notes.txt").write_text("")
    write_pictures(tmp_path / "image" / "more", {"b.png": image_pixels(0)})
    source = open_folders([pair])
    assert len(source.records) == 1
    assert source.notes == (
        f"1 hidden files ignored in {tmp_path / 'image'}",
        f"1 files that are not pictures ignored in {tmp_path / 'image'}",
    )


def test_phantoms_in_folders_still_say_that_they_are_synthetic(tmp_path):
    source = open_folders(
        [write_pair(tmp_path, ["phantom_S1_0000_1.png", "b.png"], ["phantom_S1_0000_1.png", "b.png"])]
    )
    assert "SYNTHETIC" in source.title and "1 of 2 slices" in source.title


def test_the_fingerprint_belongs_to_the_content_and_the_subset(tmp_path):
    for place in ("here", "there"):
        write_pair(tmp_path / place, ["a_1.png", "a_2.png"], ["a_1.png", "a_2.png"])
    first, second = (("", tmp_path / place / "image", tmp_path / place / "mask") for place in ("here", "there"))
    assert open_folders([first]).fingerprint() == open_folders([second]).fingerprint()
    assert open_folders([first]).fingerprint() != open_folders([("train", *first[1:])]).fingerprint()
    assert open_folders([first]).fingerprint() != open_folders([first], SourceOptions(size=(8, 8))).fingerprint()


def test_a_grey_mask_names_the_option_that_reads_it(tmp_path):
    pair = write_pair(tmp_path, ["a.png"], ["a.png"])
    write_pictures(tmp_path / "mask", {"a.png": image_pixels(0, channels=1)})
    with pytest.raises(DataError, match=r"distinct values, expected 0 and 255: .*a\.png; set data\.mask_threshold"):
        open_folders([pair]).read(0)
    _, mask = open_folders([pair], SourceOptions(mask_threshold=99)).read(0)
    np.testing.assert_array_equal(mask, image_pixels(0, channels=1) > 99)


def test_grey_images_are_read_with_one_channel(tmp_path):
    pair = write_pair(tmp_path, ["a.png"], ["a.png"])
    write_pictures(tmp_path / "image", {"a.png": image_pixels(0, channels=1)})
    assert open_source(None, SourceOptions(size=(16, 16), channels=1), pairs=[pair]).read(0)[0].shape == (16, 16, 1)


def test_a_root_and_pairs_together_are_refused(tmp_path):
    pair = write_pair(tmp_path, ["a.png"], ["a.png"])
    with pytest.raises(DataError, match="both a root"):
        open_source(tmp_path, pairs=[pair])


def test_without_root_and_pairs_the_synthetic_source_is_opened():
    source = open_source(None, SourceOptions(size=(16, 24), phantom_patients=3, phantom_seed=3))
    assert source.kind == "synthetic"
    assert source.read(0)[0].shape == (16, 24, 3)
    assert len({record.patient for record in source.records}) == 3
    with pytest.raises(UsageError, match="3 channels, not 1"):
        open_source(None, SourceOptions(size=(16, 16), channels=1))
