"""What is saved comes back to the bit, or an error says why not; a killed save leaves nothing that looks finished."""

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxunet import UNet, checkpoint
from jaxunet.checkpoint import CheckpointError, Checkpoints, abstract_like, checksums, load_weights, save_weights
from jaxunet.sharding import make_mesh, replicate, replicated, split_rows
from tests.helpers import tiny

MODEL = UNet(base_filters=2, num_layers=1)


def draw_tree(seed: int = 0) -> dict:
    """What training saves: step, parameters and Adam's state, no two numbers alike."""
    state = tiny.state(MODEL, optax.adam(1e-3))
    rng = np.random.default_rng(seed)
    tree = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 1000, leaf.dtype), tree)


def assert_same(found, expected) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def small():
    return {"params": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}, "step": jnp.int32(4)}


@pytest.mark.parametrize("devices", [1, 4, 8])
def test_round_trip_is_exact_on_any_number_of_devices(tmp_path, devices):
    tree = replicate(draw_tree(), make_mesh(jax.devices()[:4]))
    sharding = replicated(make_mesh(jax.devices()[:devices]))
    with Checkpoints(tmp_path / "new" / "folder", keep=2) as checkpoints:
        checkpoints.save(7, tree, {"best": 0.25, "note": "ü", "worst": float("inf")})
    with Checkpoints(tmp_path / "new" / "folder", keep=None) as checkpoints:
        restored, record = checkpoints.restore(abstract_like(tree, sharding))
    assert record == {"best": 0.25, "note": "ü", "worst": float("inf")}
    assert_same(restored, tree)
    assert {leaf.sharding for leaf in jax.tree.leaves(restored)} == {sharding}


def test_arrays_split_over_four_devices_come_back_split_over_eight(tmp_path):
    def split(devices):
        return NamedSharding(make_mesh(jax.devices()[:devices]), PartitionSpec("data"))

    tree = {"rows": jax.device_put(jnp.arange(16.0), split(4))}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, tree, {})
        restored, _ = checkpoints.restore(abstract_like(tree, split(8)))
    assert_same(restored, tree)
    assert restored["rows"].sharding == split(8)
    assert [shard.data.shape for shard in restored["rows"].addressable_shards] == [(2,)] * 8


def test_the_newest_are_kept_and_the_newest_is_restored(tmp_path, small):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest is None
        for step in (3, 10, 20):
            checkpoints.save(step, small | {"step": jnp.int32(step)}, {"at": step})
            assert checkpoints.latest == step
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "20"]
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest == 20
        assert int(checkpoints.restore(small)[0]["step"]) == 20
        assert int(checkpoints.restore(small, 10)[0]["step"]) == 10
        assert checkpoints.record() == {"at": 20}
        assert checkpoints.record(10) == {"at": 10}


def test_saving_a_step_twice_keeps_the_first(tmp_path, small):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(5, small, {"first": True})
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(5, jax.tree.map(jnp.zeros_like, small), {"first": False})
        restored, record = checkpoints.restore(small)
    assert_same(restored, small)
    assert record == {"first": True}


def test_no_checkpoint_is_an_error_that_says_so(tmp_path, small):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for read in (checkpoints.record, lambda: checkpoints.restore(small)):
            with pytest.raises(CheckpointError, match=f"no checkpoint in {tmp_path}: train first"):
                read()
        checkpoints.save(5, small, {})
        with pytest.raises(CheckpointError, match=r"checkpoint 6 .* cannot be read"):
            checkpoints.restore(small, 6)


@pytest.mark.parametrize("version", [0, 3, None])
def test_another_format_version_is_refused(tmp_path, small, monkeypatch, version):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "FORMAT", version)
            checkpoints.save(5, small, {})
        for read in (checkpoints.record, lambda: checkpoints.restore(small)):
            with pytest.raises(CheckpointError, match=f"format version {version}; this version of jaxunet reads 2"):
                read()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda tree: tree["params"].pop("bias"), "params/bias is unknown"),
        (lambda tree: tree.update(extra=jnp.ones(2)), "extra is missing"),
        (
            lambda tree: tree["params"].update(kernel=jnp.ones((2, 4))),
            r"params/kernel is \[\[2, 3\], 'float32'\], expected \[\[2, 4\], 'float32'\]",
        ),
        (lambda tree: tree.update(step=jnp.ones(())), r"step is \[\[\], 'int32'\], expected \[\[\], 'float32'\]"),
    ],
)
def test_a_tree_that_does_not_fit_is_refused_by_the_name_of_the_leaf(tmp_path, small, change, problem):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(5, small, {})
        change(small)
        with pytest.raises(CheckpointError, match=f"does not fit the model: {problem}$"):
            checkpoints.restore(small)


def test_many_leaves_that_do_not_fit_are_counted(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(5, {f"leaf{i}": jnp.ones(1) for i in range(9)}, {})
        with pytest.raises(CheckpointError, match=r"leaf0 .*leaf4 is unknown and 4 more"):
            checkpoints.restore({})


def test_errors_of_checkpoints_exit_with_four():
    assert CheckpointError.exit_code == 4


def run(script: str, *arguments: object) -> str:
    """Runs Python in a process of its own: damaged files leave orbax's threads with exceptions of theirs."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


DAMAGE = """
    import json, pathlib, resource, shutil, signal, sys
    import jax.numpy as jnp, numpy as np
    from jaxunet.checkpoint import CheckpointError, Checkpoints

    root = pathlib.Path(sys.argv[1])
    tree = {"a": jnp.asarray(np.random.default_rng(0).random((200, 200), np.float32)), "b": jnp.ones(3)}
    with Checkpoints(root / "whole", keep=2) as checkpoints:
        checkpoints.save(1, tree, {})
        checkpoints.save(2, tree, {})

    def attempt(path, step):
        try:
            with Checkpoints(path, keep=None) as checkpoints:
                restored, _ = checkpoints.restore(tree, step)
            return "same" if all(np.array_equal(restored[name], tree[name]) for name in tree) else "different"
        except CheckpointError as error:
            return str(error)

    outcomes = {}
    files = [file for file in (root / "whole" / "2").rglob("*") if file.is_file() and file.stat().st_size]
    for number, file in enumerate(sorted(files)):
        for damage in ("truncated", "emptied", "removed"):
            copy = root / f"{number}-{damage}"
            shutil.copytree(root / "whole", copy)
            victim = copy / file.relative_to(root / "whole")
            content = victim.read_bytes()
            victim.unlink() if damage == "removed" else victim.write_bytes(
                content[: len(content) // 2] if damage == "truncated" else b""
            )
            outcomes[f"{file.relative_to(root)} {damage}"] = [attempt(copy, 2), attempt(copy, 1), str(copy)]

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
    with Checkpoints(root / "whole", keep=2) as checkpoints:
        try:
            checkpoints.save(3, tree, {})
            full = "saved"
        except CheckpointError as error:
            full = str(error)
    after = attempt(root / "whole", 2)
    print(json.dumps({"outcomes": outcomes, "full": full, "after": after}))
"""


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    return json.loads(run(DAMAGE, tmp_path_factory.mktemp("damaged")))


def test_a_damaged_checkpoint_is_refused_or_whole_and_the_older_one_is_still_read(damaged):
    refused = 0
    for damage, (newest, older, path) in damaged["outcomes"].items():
        assert older == "same", damage
        if newest != "same":  # orbax writes files that it does not need
            assert newest.startswith(f"checkpoint 2 in {path}"), damage
            refused += 1
        assert newest != "same" or "/d/" not in damage, damage  # where the arrays are
    assert refused >= 10


def test_no_changed_bit_of_an_array_goes_unnoticed(tmp_path):
    rng = np.random.default_rng(0)
    tree = {"a": rng.normal(size=(3, 5)).astype(np.float32), "b": np.int32(7), "c": rng.normal(size=4)}
    before = checksums(tree)
    for name, leaf in tree.items():
        for bit in range(8 * leaf.nbytes):
            changed = bytearray(leaf.tobytes())
            changed[bit // 8] ^= 1 << bit % 8
            other = np.frombuffer(changed, leaf.dtype).reshape(leaf.shape)
            assert checksums({**tree, name: other})[name] != before[name], (name, bit)
    swapped = tree["a"][::-1]
    assert checksums({"a": swapped})["a"] != before["a"]


def test_checksums_do_not_depend_on_the_placement():
    array = np.arange(64, dtype=np.float32).reshape(8, 8)
    mesh = make_mesh()
    placed = [jax.device_put(array, sharding) for sharding in (replicated(mesh), split_rows(mesh))]
    assert [checksums({"a": a}) for a in (*placed, array)] == [checksums({"a": array})] * 3


def test_a_checkpoint_set_aside_is_no_checkpoint_any_more(tmp_path, small):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, small, {})
        aside = checkpoints.set_aside(2)
        assert (checkpoints.latest, aside.name, checkpoints.damaged) == (1, "2.corrupt", [aside])
        checkpoints.save(2, small, {})
        assert checkpoints.latest == 2
        assert checkpoints.set_aside(2).name == "2.corrupt_"


def test_a_save_that_does_not_fit_on_the_disk_is_an_error_with_the_sizes_and_harms_no_older_one(damaged):
    assert "checkpoint 3 was not saved in" in damaged["full"]
    assert "it needs 0 MB" in damaged["full"]
    assert damaged["after"] == "same"


UNFINISHED = """
    import sys
    import numpy as np
    from jaxunet.checkpoint import Checkpoints

    checkpoints = Checkpoints(sys.argv[1], keep=2)
    checkpoints.save(1, {"a": np.arange(4, dtype=np.float32)}, {})
    print("saving", flush=True)
    checkpoints.save(2, {"a": np.random.default_rng(0).random((20, 1000, 1000), np.float32)}, {})
"""


def test_a_save_that_is_killed_is_no_checkpoint_and_can_be_made_again(tmp_path):
    folder = tmp_path / "checkpoints"
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(UNFINISHED), str(folder)], stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout.readline() == "saving\n"
        deadline = time.monotonic() + 60
        while not list(folder.glob("2*")) and time.monotonic() < deadline:
            time.sleep(0.0005)
        child.kill()
    (left,) = folder.glob("2*")
    assert left.name != "2"  # it did die while saving
    tree = {"a": jnp.arange(4.0)}
    with Checkpoints(folder, keep=None) as reader:
        assert reader.latest == 1
        assert_same(reader.restore(tree)[0], tree)
        assert left.exists()
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.latest == 1
        checkpoints.save(2, tree, {})
        assert checkpoints.latest == 2
        assert_same(checkpoints.restore(tree)[0], tree)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_a_reader_removes_nothing(tmp_path, small):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, small, {})
    being_saved = tmp_path / "4.orbax-checkpoint-tmp"  # by another process
    being_saved.mkdir()
    with Checkpoints(tmp_path, keep=None) as reader:
        assert reader.latest == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "3", being_saved.name]


def test_weights_come_back_exactly_from_one_file(tmp_path):
    params = tiny.params(MODEL)
    path = tmp_path / "weights.npz"
    save_weights(path, jax.tree.map(jnp.asarray, params))
    assert_same(load_weights(path), params)
    assert list(tmp_path.iterdir()) == [path]  # no partial file stays
    with np.load(path) as arrays:
        assert "encoder0_conv1/kernel" in arrays.files
    images = tiny.batch()["image"]
    logits = [jax.jit(MODEL.apply)({"params": p}, images) for p in (params, load_weights(path))]
    np.testing.assert_array_equal(*logits)


def test_weights_replace_older_ones_whole(tmp_path):
    path = tmp_path / "weights.npz"
    save_weights(path, {"a": np.ones(3), "b": np.ones(2)})
    save_weights(path, {"a": np.zeros(3)})
    assert_same(load_weights(path), {"a": np.zeros(3)})


def spoil(path: Path, kind: str) -> None:
    whole = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "a folder":
        path.unlink()
        path.mkdir()
    elif kind == "pickled":
        np.savez(path, kernel=np.array([{"a": 1}], dtype=object))
    elif kind == "one array":
        with path.open("wb") as file:
            np.save(file, np.ones(3))
    else:
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        content = {"truncated": whole[:-200], "empty": b"", "text": b"weights\n" * 99, "flipped": bytes(flipped)}
        path.write_bytes(content[kind])


@pytest.mark.parametrize(
    "kind", ["missing", "a folder", "pickled", "one array", "truncated", "empty", "text", "flipped"]
)
def test_weights_that_are_none_are_refused(tmp_path, kind):
    path = tmp_path / "weights.npz"
    save_weights(path, {"layer": {"kernel": np.ones((50, 50), np.float32)}})
    spoil(path, kind)
    with pytest.raises(CheckpointError, match=f"{path} holds no weights: ."):
        load_weights(path)
