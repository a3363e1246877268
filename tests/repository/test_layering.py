"""Arrows point down only: what each package may import, and what none of them may do."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("jaxunet", "data_pipeline", "experiments")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

NUMERICS = {"jax", "flax", "optax", "numpy", "scipy", "jaxunet"}


def identify(path: Path) -> str:
    return str(path.relative_to(ROOT))


def of(package: str) -> list[Path]:
    return [path for path in FILES if path.is_relative_to(ROOT / package)]


def imports(source: str) -> Iterator[tuple[str, int]]:
    """Full names of imported modules and the line, imports inside functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import hides the layer"
            yield node.module or "", node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def roots(source: str) -> set[str]:
    return {name.split(".")[0] for name, _ in imports(source)} - sys.stdlib_module_names


def calls_that_are_forbidden(source: str) -> list[str]:
    """Ways to run text as code, to unpickle, to start a shell, and to delete a tree."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and node.id in {"eval", "exec", "compile", "__import__"}:
            if isinstance(node.ctx, ast.Load):  # a field may bear the name
                found.append(f"line {node.lineno}: {node.id}")
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if node.attr in {"rmtree", "removedirs"} or (owner == "os" and node.attr in {"system", "popen"}):
                found.append(f"line {node.lineno}: {owner}.{node.attr}")
        elif isinstance(node, ast.keyword) and node.arg in {"shell", "allow_pickle"}:
            harmless = isinstance(node.value, ast.Constant) and node.value.value is False
            found += [] if harmless else [f"line {node.lineno}: {node.arg}="]
    found += [
        f"line {line}: import {name}"
        for name, line in imports(source)
        if name.split(".")[0] in {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
        or name in {"shutil.rmtree", "os.system", "os.popen"}
    ]
    return found


def test_there_is_something_to_read():
    assert {path.name for path in of("jaxunet")} >= {"model.py", "layers.py", "step.py", "checkpoint.py", "counts.py"}
    assert of("data_pipeline")
    assert of("experiments")


@pytest.mark.parametrize("path", of("jaxunet"), ids=identify)
def test_the_library_imports_numerics_only_and_orbax_in_one_file(path):
    allowed = NUMERICS | ({"orbax"} if path.name == "checkpoint.py" else set())
    assert roots(path.read_text()) <= allowed


@pytest.mark.parametrize("path", of("data_pipeline"), ids=identify)
def test_the_data_side_never_imports_jax_or_the_layers_beside_and_above(path):
    assert not roots(path.read_text()) & {"jax", "jaxlib", "flax", "optax", "orbax", "jaxunet", "experiments"}


@pytest.mark.parametrize("path", of("jaxunet/losses"), ids=identify)
def test_losses_know_nothing_of_networks_and_steps(path):
    own = {name for name, _ in imports(path.read_text()) if name.startswith("jaxunet")}
    assert all(name.startswith(("jaxunet.losses", "jaxunet.distance")) for name in own)


@pytest.mark.parametrize("path", of("jaxunet/metrics"), ids=identify)
def test_metrics_know_nothing_of_networks_and_steps(path):
    own = {name for name, _ in imports(path.read_text()) if name.startswith("jaxunet")}
    assert all(name.startswith(("jaxunet.metrics", "jaxunet.losses.reduction")) for name in own)


@pytest.mark.parametrize("path", of("jaxunet/convolution"), ids=identify)
def test_the_convolution_knows_nothing_but_itself(path):
    own = {name for name, _ in imports(path.read_text()) if name.startswith("jaxunet")}
    assert all(name.startswith("jaxunet.convolution") for name in own)


def test_within_the_library_arrows_point_down():
    own = {
        path.stem: {name.split(".")[1] for name, _ in imports(path.read_text()) if name.startswith("jaxunet.")}
        for path in (ROOT / "jaxunet").glob("*.py")
        if path.stem != "__init__"
    }
    assert not any(own[name] for name in ("sharding", "checkpoint", "distance", "accumulate", "augment", "compiler"))
    assert own["layers"] == {"convolution"}
    assert own["model"] == {"layers"}
    assert own["surface"] == {"distance", "losses"}
    assert own["step"] <= {"accumulate", "augment", "compiler", "metrics", "sharding"}


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_no_text_is_run_as_code_no_shell_started_and_no_tree_deleted(path):
    assert calls_that_are_forbidden(path.read_text()) == []


@pytest.mark.parametrize("path", of("jaxunet"), ids=identify)
def test_the_library_never_prints_and_reads_no_command_line(path):
    names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
    assert not names & {"print", "input"}
    assert not {name for name, _ in imports(path.read_text()) if name in {"argparse", "sys", "logging"}}


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec(text)",
        "import pickle",
        "from pickle import loads",
        "import shutil\nshutil.rmtree(path)",
        "from shutil import rmtree",
        "import os\nos.system('ls')",
        "subprocess.run('ls', shell=True)",
        "subprocess.run('ls', shell=flag)",
        "numpy.load(path, allow_pickle=True)",
        "def f():\n    import pickle",
    ],
)
def test_the_guard_sees_what_it_forbids(source):
    assert calls_that_are_forbidden(source)


def test_the_guard_lets_harmless_code_pass_and_sees_imports_inside_functions():
    assert (
        calls_that_are_forbidden(
            "model.eval_step()\neval: int = 3\nnumpy.load(path, allow_pickle=False)\nre.compile(x)"
        )
        == []
    )
    assert roots("def f():\n    import jax.numpy as jnp\n    from orbax import checkpoint") == {"jax", "orbax"}
