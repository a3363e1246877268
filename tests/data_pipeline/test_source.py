"""A source needs one file to be opened, checked, split and prepared; what is recorded of the others does not change."""

import subprocess
import sys

import numpy as np
import pytest

from data_pipeline import SourceOptions, open_source
from data_pipeline.check import decode, facts
from data_pipeline.prepare import prepare
from data_pipeline.source import DataError, UsageError, source_kind, source_kinds
from data_pipeline.split_folders import write_split
from tests.helpers.trees import Slices, image_pixels, mask_pixels, write_kaggle, write_pictures

# Fingerprints are the keys of prepared data and stand in every run directory: a change makes both useless.
PHANTOMS = "1427c6279d7407c2e19c6bd8043b2e4d0cd4755bc82c973160c9bce3c3526f55"
KAGGLE = "8fe0b6a1e3f01543cebc517c3cf9188e6ac108401c10a277c7656e6c110ed6dc"
KAGGLE_RESIZED = "d79f2fb8985d02eb3b3c14fe0ba00c39c9ab901274e19dd19ca5db5e9adb45b4"
FOLDERS = "ea48e04f3d253fc8c1e42210273b95f13548dd842764be0ef967f312f8ad7aaf"

ARRAYS = '''
"""Slices of one `.npz` file; written by a test."""

import hashlib
from pathlib import Path

import numpy as np

from data_pipeline.source import Record, Source, SourceOptions, register


def is_arrays(root: Path | None) -> bool:
    return root is not None and root.suffix == ".npz"


@register("arrays", opens=is_arrays, expects="an .npz file", gapless=False)
class Arrays(Source):
    kind, title, notes = "arrays", "arrays of a test", ()

    def __init__(self, root: Path, options: SourceOptions):
        with np.load(root) as file:
            self.images, self.masks = file["images"], file["masks"]
        self.records = [Record(f"p{i // 4}_{3 * i}", f"p{i // 4}", 3 * i) for i in range(len(self.images))]

    def fingerprint(self) -> str:
        return hashlib.sha256(self.images.tobytes() + self.masks.tobytes()).hexdigest()

    def read(self, index):
        return self.images[index], self.masks[index]
'''


@pytest.fixture
def arrays(tmp_path, monkeypatch):
    """A folder of modules next to the sources, with one more source in it, and a data set of its kind."""
    import data_pipeline.source as module
    import data_pipeline.sources as package

    source_kinds()
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "arrays_of_a_test.py").write_text(ARRAYS)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / "more")])
    monkeypatch.setattr(module, "_KINDS", dict(module._KINDS))
    yield tmp_path / "set.npz"
    sys.modules.pop("data_pipeline.sources.arrays_of_a_test", None)


def test_a_source_in_a_file_of_its_own_is_opened_checked_prepared_and_split(arrays, tmp_path):
    images = np.stack([image_pixels(seed) for seed in range(20)])
    masks = np.stack([mask_pixels(seed)[:, :, None] // 255 for seed in range(20)])
    np.savez(arrays, images=images, masks=masks)
    source = open_source(arrays)
    assert source.kind == "arrays"
    assert facts(decode(source)).problems == ()  # numbers with gaps, which this kind allows
    prepared = prepare(source, tmp_path / "cache", progress=False)
    assert prepared.kind == "arrays" and facts(prepared).slices == 20
    np.testing.assert_array_equal(prepared[7]["image"], images[7])
    counts = write_split(source, tmp_path / "out")  # as pictures, because there are no files to copy
    assert (counts.train, counts.test) == (16, 4)
    written = open_source(tmp_path / "out")
    index = [record.name.removeprefix("p1_") for record in written.records].index("21")
    np.testing.assert_array_equal(written.read(index)[0], images[7])


def test_every_kind_is_found_and_says_what_it_can_do():
    kinds = source_kinds()
    assert "synthetic" in kinds
    assert list(kinds)[-2:] == ["folders", "kaggle_3m"], "kinds that are added are asked before these"
    assert kinds["synthetic"].synthetic and not kinds["folders"].synthetic and not kinds["kaggle_3m"].synthetic
    assert not kinds["folders"].fixed_size and kinds["kaggle_3m"].fixed_size
    assert not kinds["folders"].gapless and kinds["kaggle_3m"].gapless
    assert kinds["kaggle_3m"].homepage and "Buda" in kinds["kaggle_3m"].citation


def test_a_source_that_was_not_registered_has_the_default_attributes(tmp_path):
    source = Slices()
    source.kind = "of my own"
    assert facts(prepare(source, tmp_path, progress=False)).slices == 10
    kind = source_kind("of my own")
    assert (kind.synthetic, kind.fixed_size, kind.gapless, kind.homepage) == (False, True, True, None)


def test_the_fingerprints_are_the_recorded_ones(tmp_path):
    assert open_source(None).fingerprint() == PHANTOMS
    tree = write_kaggle(tmp_path / "kaggle_3m")
    assert open_source(tree, SourceOptions(size=(16, 16))).fingerprint() == KAGGLE
    assert open_source(tree, SourceOptions(size=(16, 16), resize=True)).fingerprint() == KAGGLE_RESIZED
    for kind, pixels in (("image", image_pixels), ("mask", mask_pixels)):
        write_pictures(tmp_path / "pair" / kind, {f"p_{number}.bmp": pixels(number) for number in range(4)})
    assert open_source(tmp_path / "pair", SourceOptions(size=(16, 16))).fingerprint() == FOLDERS


def test_folders_named_as_in_kaggle_3m_are_folders(tmp_path):
    for kind, pixels in (("image", image_pixels), ("mask", mask_pixels)):
        write_pictures(tmp_path / kind, {"TCGA_CS_0001_20000101_1.tif": pixels(1)})
    assert open_source(tmp_path).kind == "folders"


@pytest.mark.parametrize("name", ["readme.txt", "folder"])
def test_a_place_that_no_source_opens_is_told_what_was_expected(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "readme.txt").write_text("x")
    for place, holds in (
        (tmp_path / name, "a file" if "." in name else "holds nothing"),
        (tmp_path, "holds folder, readme.txt"),
    ):
        message = rf"not a data set: {place} .{holds}.; expected .*train/mask.*, or the kaggle_3m.*kaggle\.com"
        with pytest.raises(DataError, match=message):
            open_source(place)


def test_a_zip_that_is_damaged_is_told_so(tmp_path):
    (tmp_path / "archive.zip").write_bytes(b"PK\3\4")
    with pytest.raises(DataError, match=r"not a readable zip archive .*archive\.zip"):
        open_source(tmp_path / "archive.zip")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 64)}, "size 0x64: height and width must be from 1 to 65536 pixels"),
        ({"size": (64, 65537)}, "size 64x65537: height and width"),
        ({"mask_threshold": -1}, "mask_threshold=-1: must be a grey value from 0 to 254"),
        ({"mask_threshold": 255}, "mask_threshold=255: must be a grey value"),
        ({"phantom_patients": 2}, "2 synthetic patients: at least 3"),
        ({"phantom_seed": -1}, "seed=-1: must be at least 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        SourceOptions(**options)


def test_importing_the_package_loads_no_decoders():
    code = "import sys, data_pipeline\nassert not {'PIL', 'tifffile', 'array_record', 'grain'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
