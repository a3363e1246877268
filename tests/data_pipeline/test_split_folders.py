"""The split command writes the documented folders as byte copies, and refuses before it writes anything."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline import SourceOptions, open_source
from data_pipeline import split_folders as module
from data_pipeline.__main__ import main as program
from data_pipeline.split_folders import write_split
from data_pipeline.splits import split
from tests.helpers.trees import encode, image_pixels, mask_pixels, write_kaggle, write_pictures, write_zip

FOLDERS = ("train/image", "train/mask", "test/image", "test/mask", "mini_test")


@pytest.fixture
def tree(tmp_path):
    return write_kaggle(tmp_path / "kaggle_3m")


def main(words: list[str]) -> int:
    return program(["split", *words])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_documented_folders_hold_byte_copies_of_the_tumour_slices(tree, tmp_path, capsys):
    out = tmp_path / "BrainTumor"
    assert main([str(tree), str(out)]) == 0
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_dir()) == sorted(
        {*FOLDERS, "train", "test"}
    )
    originals = {path.name: path for path in tree.rglob("*.tif")}
    for path in out.rglob("*.tif"):
        assert path.read_bytes() == originals[path.name].read_bytes()
    with_tumour = {name for name, path in originals.items() if "mask" in name and np.asarray(Image.open(path)).any()}
    assert names(out / "train/mask") | names(out / "test/mask") == with_tumour
    assert not names(out / "train/mask") & names(out / "test/mask")
    for part in ("train", "test"):
        assert {name.replace("_mask", "") for name in names(out / part / "mask")} == names(out / part / "image")
    assert (len(names(out / "train/image")), len(names(out / "test/image"))) == (8, 3)  # 80 % of 11, rounded down
    printed = capsys.readouterr()
    assert "8 training and 3 test slices with tumour, 3 in mini_test" in printed.out
    assert "patients are on both sides" in printed.out and printed.err == ""


def test_training_on_the_folders_uses_the_slices_that_the_split_chose(tree, tmp_path):
    assert main([str(tree), str(tmp_path / "out"), "--seed=4"]) == 0
    direct, copied = open_source(tree), open_source(tmp_path / "out")

    def chosen(source):
        entries = [Entry(source, index) for index in range(len(source.records))]
        result = split(entries, by="slice", seed=4)
        return [{entries[index].name for index in part} for part in (result.train, result.val, result.test)]

    assert chosen(direct) == chosen(copied)


class Entry:
    def __init__(self, source, index):
        record = source.records[index]
        self.name, self.patient, self.site, self.subset = record.name, record.patient, record.site, record.subset
        self.positives = int(source.read(index)[1].sum())


def test_mini_test_holds_ten_images_of_the_test_folder(tmp_path):
    tree = write_kaggle(tmp_path / "kaggle_3m", {"TCGA_CS_0001_20000101": 60}, tumour_every=1)
    assert main([str(tree), str(tmp_path / "out")]) == 0
    mini = names(tmp_path / "out/mini_test")
    assert len(mini) == 10 and mini < names(tmp_path / "out/test/image")


def test_a_seed_repeats_the_folders_and_another_changes_them(tree, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert main([str(tree), str(tmp_path / name), f"--seed={seed}"]) == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert set(files(tmp_path / "a")) != set(files(tmp_path / "c"))


def test_by_patient_no_patient_is_in_both_folders(tree, tmp_path, capsys):
    assert main([str(tree), str(tmp_path / "out"), "--by=patient"]) == 0
    train, test = ({name[:21] for name in names(tmp_path / "out" / part / "image")} for part in ("train", "test"))
    assert train and test and not train & test
    masks = [path for part in ("train", "test") for path in (tmp_path / "out" / part / "mask").iterdir()]
    assert len(masks) == 11 and all(np.asarray(Image.open(path)).any() for path in masks)
    assert "note: site EZ has one patient" in capsys.readouterr().out


def test_a_zip_gives_the_same_folders_as_its_tree(tree, tmp_path):
    zipped = write_zip(tmp_path / "a.zip", tree, under=tmp_path)
    for name, root in (("a", tree), ("b", zipped)):
        assert main([str(root), str(tmp_path / name)]) == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_image_and_mask_folders_are_split_and_keep_their_formats(tmp_path):
    for kind, pixels in (("image", image_pixels), ("mask", mask_pixels)):
        write_pictures(tmp_path / "in" / kind, {f"p_{n}.{'png' if n % 2 else 'bmp'}": pixels(n) for n in range(10)})
    assert main([str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert (len(names(tmp_path / "out/train/image")), len(names(tmp_path / "out/test/image"))) == (8, 2)
    assert names(tmp_path / "out/train/image") | names(tmp_path / "out/test/image") == names(tmp_path / "in/image")


@pytest.mark.parametrize("picture_format", ["tif", "png"])
def test_synthetic_slices_are_written_as_pictures_that_read_back_exactly(tmp_path, picture_format):
    options = ["--synthetic", "--phantom_patients=3", "--size", "16", "24", f"--picture_format={picture_format}"]
    assert main([str(tmp_path / "out"), *options]) == 0
    phantoms = open_source(None, SourceOptions(size=(16, 24), phantom_patients=3))
    wanted = {record.name: index for index, record in enumerate(phantoms.records)}
    source = open_source(tmp_path / "out")
    assert "SYNTHETIC" in source.title
    assert {path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()} == {f".{picture_format}"}
    for index, record in enumerate(source.records):
        for found, drawn in zip(source.read(index), phantoms.read(wanted[record.name]), strict=True):
            np.testing.assert_array_equal(found, drawn)


def test_a_folder_that_is_not_empty_is_refused_and_left_as_it_was(tree, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".canary").write_text("mine")
    assert main([str(tree), str(out)]) == 2
    assert files(out) == {".canary": b"mine"}
    assert f"error: OUT is not empty: {out}; nothing was written" in capsys.readouterr().err


def test_a_split_that_was_stopped_is_no_split(tree, tmp_path, monkeypatch, capsys):
    written = []

    def stop_at_the_seventh(folder, file):
        written.append(folder)
        if len(written) == 7:
            raise KeyboardInterrupt
        (folder / file[0]).write_bytes(file[1])

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", stop_at_the_seventh)
        assert main([str(tree), str(tmp_path / "out")]) == 130
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".partial"]  # no train folder that would be read
    assert main([str(tree), str(tmp_path / "out")]) == 2
    assert "is from an interrupted split" in capsys.readouterr().err


def test_an_empty_folder_is_filled(tree, tmp_path):
    (tmp_path / "out").mkdir()
    assert main([str(tree), str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["kaggle_3m"], 2, "OUT is missing"),
        (["kaggle_3m", "kaggle_3m/out"], 2, "OUT lies in ROOT"),
        (["kaggle_3m", "a_file"], 2, "OUT is not a folder"),
        (["kaggle_3m", "a_file/out"], 1, "error: .*a_file"),
        (["kaggle_3m", "out", "--synthetic"], 2, "name OUT alone"),
        (["missing", "out"], 1, "no such file or folder: '.*missing'"),
        (["a_file", "out"], 1, "not a data set: .*a_file .a file.; expected .*kaggle_3m"),
        (["split", "out"], 1, "are split into train and test folders already"),
        (["out", "--synthetic", "--phantom_patients=0"], 2, "0 synthetic patients: at least 3"),
        (["out", "--synthetic", "--size", "0", "0"], 2, "size 0x0: height and width must be from 1"),
        (["out", "--synthetic", "--size", "8", "8"], 2, "size is 8x8, expected at least 16 pixels each way"),
        (["kaggle_3m", "out", "--seed=-1"], 2, "--seed=-1: must be at least 0"),
        (["kaggle_3m", "out", "--mask_threshold=300"], 2, "mask_threshold=300: must be a grey value from 0 to 254"),
        (["kaggle_3m", "out", "--mask_threshold=-1"], 2, "mask_threshold=-1: must be a grey value"),
        (["x" * 300, "out"], 1, "File name too long"),
    ],
)
def test_what_cannot_be_split_is_one_message_and_an_exit_code(tree, tmp_path, capsys, arguments, code, message):
    (tmp_path / "a_file").write_text("x")
    for part in ("train", "test"):
        for kind, pixels in (("image", image_pixels), ("mask", mask_pixels)):
            write_pictures(tmp_path / "split" / part / kind, {"p_1.png": pixels(1)})
    before = files(tmp_path)
    places = [argument if re.match(r"--|\d+$", argument) else str(tmp_path / argument) for argument in arguments]
    assert main(places) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
    assert re.search(message, error), error
    assert files(tmp_path) == before


@pytest.mark.parametrize("arguments", [["--by=site"], ["--seed=x"], ["--sed=1"], []])
def test_a_wrong_command_line_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*arguments, *(["a", "b"] if arguments else [])])
    assert caught.value.code == 2
    assert capsys.readouterr().err


def test_a_bad_file_is_found_before_anything_is_written(tree, tmp_path, capsys):
    last = sorted(tree.rglob("*_mask.tif"))[-1]
    last.write_bytes(last.read_bytes()[:-1])
    assert main([str(tree), str(tmp_path / "out")]) == 1
    assert f"truncated: {last.stat().st_size} of " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_too_little_space_is_said_before_anything_is_written(tree, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("data_pipeline.split_folders.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    assert main([str(tree), str(tmp_path / "out")]) == 1
    assert "0 MiB are free; nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_set_without_tumour_is_refused(tmp_path, capsys):
    tree = write_kaggle(tmp_path / "kaggle_3m", tumour_every=100)
    assert main([str(tree), str(tmp_path / "out")]) == 1
    assert "0 of 26 training masks contain tumour" in capsys.readouterr().err


def test_grey_masks_are_copied_as_they_are_when_a_threshold_is_given(tree, tmp_path):
    for path in tree.rglob("*_mask.tif"):
        path.write_bytes(encode(np.asarray(Image.open(path)) // 255 * np.uint8(7)))
    assert main([str(tree), str(tmp_path / "out")]) == 1
    assert main([str(tree), str(tmp_path / "out"), "--mask_threshold=3"]) == 0
    path = next((tmp_path / "out/train/mask").iterdir())
    assert set(np.unique(np.asarray(Image.open(path)))) == {0, 7}


def test_from_python_the_counts_and_notes_come_back(tree, tmp_path):
    counts = write_split(open_source(tree), tmp_path / "out", by="slice", seed=0)
    assert (counts.train, counts.test, counts.mini_test) == (8, 3, 3)
    assert "split by slice, as the reference does" in counts.notes[-1]


def test_the_command_explains_itself_without_the_slow_imports():
    code = (
        "import sys\nfrom data_pipeline.__main__ import main\n"
        "try: main(['split', '--help'])\nexcept SystemExit as e: assert e.code == 0\n"
        "slow = {'jax', 'flax', 'matplotlib', 'tensorflow_datasets', 'grain', 'orbax'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for word in ("ROOT", "OUT", "--by", "--seed", "mini_test"):
        assert word in done.stdout


def test_the_program_runs_in_a_process(tree, tmp_path):
    command = [sys.executable, "-m", "data_pipeline", "split", str(tree), str(tree), "--by=slice", "--seed=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "error: OUT" in done.stderr
