"""Which files are images, which are masks, what their output is called, and what they look like to the network."""

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.source import DataError
from experiments.image_folder import find_images, output_names, read_for_network
from tests.helpers.red_network import red, save


def test_files_of_one_name_have_outputs_of_their_own():
    paths = [Path(name) for name in ("a.png", "a.tif", "a.1.tif", "A.PNG", "a_png.bmp", "b.jpg")]
    found = output_names(paths)
    assert len({name.casefold() for name in found}) == len(paths)
    assert found == ["a_png_2", "a_tif", "a.1", "A_png_3", "a_png", "b"]


def test_masks_that_are_missing_or_double_are_named(tmp_path):
    for name in "abc":
        save(tmp_path / "in" / f"{name}.png", red())
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match="none of 3 images has a mask"):
        find_images(tmp_path / "in", tmp_path / "masks")
    for name in ("a.png", "a_mask.png", "b_mask.tif"):
        save(tmp_path / "masks" / name, red()[:, :, 0])
    (a, b, c), notes = find_images(tmp_path / "in", tmp_path / "masks")
    assert "two masks for" in a.problem
    assert b.mask is not None and b.mask.name == "b_mask.tif"
    assert c.mask is None and not c.problem
    assert notes == [f"1 of 3 images have no mask in {tmp_path / 'masks'}: c.png"]


def test_masks_next_to_images_are_not_images(tmp_path):
    for name in ("a.tif", "a_mask.tif", "only_mask.tif", ".hidden.png", "._a.tif", "notes.txt"):
        save(tmp_path / name, red()) if name.endswith(("tif", "png")) else (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    pictures, notes = find_images(tmp_path)
    assert [p.path.name for p in pictures] == ["a.tif", "only_mask.tif"]
    assert any("1 masks next to the images" in note for note in notes)
    assert any("notes.txt" in note for note in notes)
    assert any("folder.png" in note for note in notes)
    (a, _), _ = find_images(tmp_path, tmp_path)
    assert a.mask == tmp_path / "a_mask.tif"


def test_a_missing_or_empty_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        find_images(tmp_path / "none")
    (tmp_path / "patient").mkdir()
    with pytest.raises(DataError, match="holds the folders patient: name one of them"):
        find_images(tmp_path)


def test_colours_are_read_in_order(tmp_path):
    colour = np.broadcast_to(np.array([10, 20, 30], np.uint8), (4, 5, 3))
    image, notes = read_for_network(save(tmp_path / "a.png", colour), 3)
    np.testing.assert_array_equal(image, colour)
    assert notes == ()


def test_grey_is_repeated_and_transparency_dropped_with_a_note(tmp_path):
    grey, notes = read_for_network(save(tmp_path / "a.png", np.full((4, 5), 7, np.uint8)), 3)
    assert grey.shape == (4, 5, 3) and (grey == 7).all()
    assert notes == ("grey: repeated in three channels",)
    clear = np.broadcast_to(np.array([1, 2, 3, 0], np.uint8), (4, 5, 4))
    image, notes = read_for_network(save(tmp_path / "b.png", clear), 3)
    np.testing.assert_array_equal(image, clear[:, :, :3])
    assert notes == ("with transparency: it was dropped",)


def test_three_sequences_are_not_mixed_into_one(tmp_path):
    with pytest.raises(DataError, match="expected 8-bit grey"):
        read_for_network(save(tmp_path / "a.png", red()), 1)
    image, notes = read_for_network(save(tmp_path / "b.png", np.full((4, 5, 3), 9, np.uint8)), 1)
    assert image.shape == (4, 5, 1) and (image == 9).all() and notes


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_refused(tmp_path, channels):
    save(tmp_path / "a.tif", np.full((4, 5), 300, np.uint16))
    with pytest.raises(DataError, match=r"16.*a\.tif"):
        read_for_network(tmp_path / "a.tif", channels)
