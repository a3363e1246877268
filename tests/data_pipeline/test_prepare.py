import dataclasses
import hashlib
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import prepare as module
from data_pipeline.__main__ import main
from data_pipeline.prepare import prepare
from data_pipeline.prepared import open_prepared
from data_pipeline.source import DataError
from tests.helpers.trees import Slices, replaced

ROOT = Path(__file__).parents[2]


def run(code, *arguments):
    script = f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n{code}"
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare(Slices(), tmp_path_factory.mktemp("cache"), progress=False)


def test_a_prepared_slice_is_the_slice_of_the_source(prepared):
    source = Slices()
    assert len(prepared) == 10
    for index, record in enumerate(source.records):
        image, mask = source.read(index)
        got = prepared[index]
        assert got["image"].dtype == got["mask"].dtype == np.uint8
        np.testing.assert_array_equal(got["image"], image)
        np.testing.assert_array_equal(got["mask"], mask)
        assert prepared.patients[got["patient"]] == record.patient
        assert got["slice"] == record.slice
        assert got["patient"].dtype == got["slice"].dtype == np.int32


def test_entries_tell_what_is_in_the_slices(prepared):
    source = Slices()
    for index, (entry, record) in enumerate(zip(prepared.entries, source.records, strict=True)):
        image, mask = source.read(index)
        assert dataclasses.astuple(entry)[:5] == dataclasses.astuple(record)
        assert entry.positives == mask.sum()
        assert entry.digest == hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest()
    assert prepared.patients == ("p0", "p1", "p2", "p3")
    assert prepared.shape == (8, 6, 3)
    assert prepared.mask_shape == (8, 6, 1)
    assert (prepared.kind, prepared.title, prepared.notes) == (source.kind, source.title, source.notes)
    assert prepared.fingerprint == source.fingerprint()


def test_a_second_prepare_reads_no_slice(tmp_path):
    log = tmp_path / "log"
    first = prepare(Slices(log=log), tmp_path / "cache", progress=False)
    log.unlink()
    second = prepare(Slices(log=log), tmp_path / "cache", progress=False)
    assert second == first
    assert not log.exists()


def test_the_words_of_the_source_at_hand_are_taken(tmp_path):
    prepare(Slices(), tmp_path, progress=False)
    source = Slices()
    source.title, source.notes = "the same slices at another place", ["one file ignored"]
    again = prepare(source, tmp_path, progress=False)
    assert (again.title, again.notes) == (source.title, ("one file ignored",))


@pytest.mark.parametrize("change", ["bytes", "kind", "subset", "version"])
def test_another_content_is_another_folder(tmp_path, monkeypatch, change):
    first = prepare(Slices(count=3), tmp_path, progress=False)
    source = Slices(count=3, seed=int(change == "bytes"))
    if change == "kind":
        source.kind = "synthetic"
    if change == "subset":
        replaced(source, 1, subset="test")
    if change == "version":
        monkeypatch.setattr(module, "VERSION", "9.9.9")
        assert module._key(source, source.fingerprint())[:16] not in str(first.path)
        return
    second = prepare(source, tmp_path, progress=False)
    assert second.path != first.path
    assert second.entries[1].subset == ("test" if change == "subset" else "")


def test_a_cache_inside_the_dataset_is_refused_and_nothing_written(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"lies inside the dataset .*data\.cache_dir"):
        prepare(Slices(), tmp_path / "data" / "cache", progress=False, datasets=[tmp_path / "data"])
    assert not list((tmp_path / "data").iterdir())
    prepare(Slices(count=1), tmp_path / "data-cache", progress=False, datasets=[tmp_path / "data"])


class TestDisk:
    def test_too_little_space_is_said_before_anything_is_written(self, tmp_path, monkeypatch):
        usage = module.shutil.disk_usage(tmp_path)
        monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
        with pytest.raises(DataError, match=r"10 slices needs up to 0\.07 GB in .*, where 0\.00 GB are free"):
            prepare(Slices(), tmp_path, progress=False)
        assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]

    def test_a_cache_that_is_a_file_is_one_sentence(self, tmp_path):
        (tmp_path / "cache").write_text("")
        with pytest.raises(DataError, match=r"cannot write the prepared data to .*cache: .*data\.cache_dir"):
            prepare(Slices(), tmp_path / "cache", progress=False)

    def test_a_disk_that_fills_up_is_one_sentence_and_leaves_nothing(self, tmp_path):
        limit = (60_000, resource.RLIM_INFINITY)
        result = run(
            "from tests.data_pipeline.test_prepare import *\n"
            f"from data_pipeline.lgg_mri import builder\nresource.setrlimit(resource.RLIMIT_FSIZE, {limit})\n"
            "try: prepare(Slices(count=200, size=(32, 32)), sys.argv[1], progress=False)\n"
            "except DataError as error: print(error)",
            tmp_path,
        )
        assert result.stdout.startswith(f"cannot write the prepared data to {tmp_path}: ")
        assert not list(tmp_path.rglob("*array_record*"))


class TestInterruption:
    def killed(self, cache, tmp_path):
        """Starts a build of 200 slices and kills it when half are written."""
        script = (
            "from tests.data_pipeline.test_prepare import *\n"
            "prepare(Slices(count=200, pause=.01, log=Path(sys.argv[2])), sys.argv[1])"
        )
        log = tmp_path / "log"
        code = f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n{script}"
        process = subprocess.Popen([sys.executable, "-c", code, str(cache), str(log)])
        while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) > 100):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL

    def test_a_killed_build_is_never_used_and_the_next_run_cleans_up(self, tmp_path):
        cache = tmp_path / "cache"
        self.killed(cache, tmp_path)
        (left,) = cache.glob("*/lgg_mri/incomplete.*")
        assert list(left.iterdir())
        keep = left.with_name("incomplete.ABCDEF_1.0.0")
        keep.mkdir()
        (keep / "notes of somebody.txt").write_text("not ours")
        prepared = prepare(Slices(count=200), cache, progress=False)
        assert len(prepared) == 200
        assert sorted(prepared.path.parent.iterdir()) == [prepared.path, keep]
        assert (keep / "notes of somebody.txt").read_text() == "not ours"

    def test_of_two_processes_one_writes_and_the_other_waits(self, tmp_path):
        code = (
            "from tests.data_pipeline.test_prepare import *\n"
            "p = prepare(Slices(count=60, pause=.02, log=Path(sys.argv[2])), sys.argv[1], progress=False)\n"
            "print(p.path, len(p), p[59]['image'].sum())"
        )
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(lambda _: run(code, tmp_path / "cache", tmp_path / "log").stdout, range(2))
        assert first == second
        read = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
        assert len({process for process, _ in read}) == 1
        assert not list(tmp_path.rglob("incomplete*"))

    def test_without_file_locks_the_slower_process_takes_what_the_faster_one_wrote(self, tmp_path, monkeypatch):
        def no_locks(file, operation):
            raise OSError("no locks available")

        monkeypatch.setattr(module.fcntl, "flock", no_locks)
        slow, faster = Slices(), []
        read = slow.read

        def read_slowly(index):
            if index == 9:
                faster.append(prepare(Slices(), tmp_path, progress=False))
            return read(index)

        slow.read = read_slowly
        assert prepare(slow, tmp_path, progress=False) == faster[0]
        assert not list(tmp_path.rglob("incomplete*"))


def test_everything_works_where_tensorflow_cannot_be_imported(tmp_path):
    result = run(
        """
class WithoutTensorFlow:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] == "tensorflow" else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(WithoutTensorFlow, sys.meta_path)
try:
    import tensorflow
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("tensorflow is there")
from tests.data_pipeline.test_prepare import *
slow = {"tensorflow", "tensorflow_datasets", "grain", "jax"}
assert not slow & set(sys.modules), slow & set(sys.modules)
prepared = prepare(Slices(), sys.argv[1], progress=False)
from data_pipeline.loader import eval_batches
assert sum(batch["weight"].sum() for batch in eval_batches(prepared, range(10), batch_size=4)) == 10
assert "tensorflow" not in sys.modules
""",
        tmp_path,
    )
    assert (result.stdout, result.stderr) == ("", "")


class TestCommand:
    def test_it_prepares_synthetic_slices_loudly_and_prints_the_check(self, tmp_path, capsys):
        arguments = ["--phantom_patients", "6", "--size", "64", "32", "--cache_dir", str(tmp_path)]
        assert main(["prepare", *arguments]) == 0
        out = capsys.readouterr().out
        assert "SYNTHETIC slices, not patients" in out
        assert "6 invented patients" in out
        (path,) = tmp_path.glob("synthetic-*/lgg_mri/1.0.0")
        assert out.endswith(f"prepared in {path}\n")
        assert open_prepared(path).shape == (64, 32, 3)

    def test_a_missing_root_is_exit_code_1_and_never_the_synthetic_set(self, tmp_path, capsys):
        assert main(["prepare", "--root", str(tmp_path / "nowhere"), "--cache_dir", str(tmp_path / "cache")]) == 1
        captured = capsys.readouterr()
        assert captured.err == f"error: no such file or folder: '{tmp_path / 'nowhere'}' (data.root)\n"
        assert captured.out == ""
        assert not (tmp_path / "cache").exists()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--size", "8", "8"], "size is 8x8, expected at least 16 pixels each way"),
            (["--size", "0", "64"], "size 0x64: height and width must be from 1"),
            (["--phantom_seed=-1"], "seed=-1: must be at least 0"),
            (["--phantom_patients=2"], "2 synthetic patients: at least 3"),
            (["--mask_threshold=-1"], "mask_threshold=-1: must be a grey value"),
            (["--channels=4"], "synthetic slices have 3 channels, not 4"),
            (["--cache_dir="], "--cache_dir='' is not a path"),
        ],
    )
    def test_a_value_that_makes_no_sense_ends_with_2_and_writes_nothing(
        self, tmp_path, monkeypatch, capsys, words, message
    ):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert main(["prepare", *words]) == 2
        assert message in capsys.readouterr().err
        assert not list(tmp_path.iterdir())

    def test_ctrl_c_leaves_nothing_half_written(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("data_pipeline.__main__.open_source", lambda *_: interrupted)
        interrupted = Slices()
        read = interrupted.read
        interrupted.read = lambda index: signal.raise_signal(signal.SIGINT) if index == 7 else read(index)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
        try:
            assert main(["prepare", "--cache_dir", str(tmp_path)]) == 130
        finally:
            signal.signal(signal.SIGINT, before)
        assert "interrupted" in capsys.readouterr().err
        assert not list(tmp_path.rglob("*array_record*"))
