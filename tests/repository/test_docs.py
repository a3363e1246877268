"""README, CONTRIBUTING and docs/: commands parse, links lead somewhere, everything is named, the English is plain."""

import importlib
import importlib.util
import re
import shlex
import tomllib

import pytest
import yaml

from experiments import cli
from experiments.bench.options import parse as parse_bench
from experiments.config import PRESETS
from experiments.ini import INI_KEYS
from jaxunet.losses import LOSSES
from tests.helpers.pages import PAGES, ROOT, TEXT, python_commands, shell_commands

RUN = ROOT / "tests" / "data" / "run_0_1"
COMMANDS = [(page, command) for page, text in PAGES.items() for command in python_commands(text)]
OF_PROGRAMS = [(page, command) for page, command in COMMANDS if command.startswith("experiments.")]
OF_DATA = [(page, command) for page, command in COMMANDS if command.startswith("data_pipeline")]
EXAMPLES = {"count"}
"""Programs that CONTRIBUTING invents."""


@pytest.mark.parametrize(("page", "command"), OF_PROGRAMS)
def test_a_command_names_a_program_and_options_that_parse(page, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module, *flags = shlex.split(command)
    program = module.removeprefix("experiments.")
    if program in EXAMPLES:
        return
    assert importlib.util.find_spec(module)
    if program == "bench":
        parse_bench(flags)
    else:
        # The pages name runs and files that only their reader has; a run of the test data stands in for them.
        flags = [flag for flag in flags if not flag.startswith(("--out=", "--run_dir="))]
        flags = [flag.replace("=dice.ini", f"={ROOT / 'tests' / 'data' / 'dice.ini'}") for flag in flags]
        needs_a_run = program in ("evaluate", "predict", "infer", "export")
        cli.parse([*flags, *([f"--run_dir={RUN}"] if needs_a_run else [])], program=program)


@pytest.mark.parametrize(("page", "command"), OF_DATA)
def test_a_command_of_the_data_side_parses(page, command):
    module, *words = shlex.split(command)
    assert module == "data_pipeline"
    if words:
        importlib.import_module("data_pipeline.__main__").parse(words)


def test_every_program_is_a_command():
    named = {command.split()[0] for _, command in COMMANDS}
    started = {
        f"experiments.{path.stem}" for path in (ROOT / "experiments").glob("*.py") if "__main__" in path.read_text()
    }
    assert started | {"experiments.bench", "data_pipeline"} <= named
    for command in ("check", "prepare", "split"):
        assert any(words.startswith(f"data_pipeline {command}") for _, words in COMMANDS)


def test_the_extras_to_install_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"-e '\.\[(\w+)\]'", TEXT)
    assert named and set(named) <= set(extras)
    assert {"cuda12", "cuda13", "tpu", "dev", "docs", "tensorboard"} <= set(extras)


@pytest.mark.parametrize(
    "command",  # sorted: the workers of a parallel run must collect the same tests
    sorted({command for text in PAGES.values() for command in shell_commands(text) if command.startswith("make ")}),
)
def test_a_make_command_names_a_target_and_variables_of_the_makefile(command):
    makefile = (ROOT / "Makefile").read_text()
    _, target, *variables = shlex.split(command)
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    for variable in variables:
        assert re.search(rf"^{variable.split('=')[0]} \?=", makefile, re.MULTILINE)


def test_every_loss_preset_and_ini_key_is_named():
    for name in (*LOSSES, *PRESETS):
        assert f"`{name}`" in TEXT, name
    for section, key in INI_KEYS:
        assert f"`[{section}]`" in PAGES["docs/reference.md"], section
        assert f"`{key}`" in PAGES["docs/reference.md"], key


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    # Links from docs/ also have to work on the site, which holds nothing else.
    inside = ROOT / "docs" if page.startswith("docs/") else ROOT
    text = re.sub(r"```.*?```|`[^`]*`", "code", PAGES[page], flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", text):
        path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
        assert path.exists() and path.is_relative_to(inside), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, anchor


def test_every_page_is_on_the_site():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES:
        if page.startswith("docs/"):
            assert f": {page.removeprefix('docs/')}\n" in navigation, page


def test_a_warning_fails_the_site():
    recipe = re.search(r"^docs:.*\n\t(.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert "--strict" in recipe
    assert "--quiet" not in recipe  # it hides warnings, also from --strict


def test_the_site_loads_nothing_from_the_network():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert settings["theme"]["font"] is False
    assert not {"extra_javascript", "repo_url"} & settings.keys()
    assert all("http" not in name for name in settings["extra_css"])


def test_the_tested_versions_are_what_the_constraints_say():
    constraints = (ROOT / "constraints.txt").read_text()
    assert re.search(r'^jax==0\.10\.\S+ ; python_version < "3\.12"$', constraints, re.MULTILINE)
    assert re.search(r'^jax==0\.11\.\S+ ; python_version >= "3\.12"$', constraints, re.MULTILINE)


def test_the_workflow_runs_the_makefile_on_every_supported_python():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    job = workflow["jobs"]["check"]
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    versions = [line.rpartition(":: ")[2] for line in classifiers if ":: Python :: 3." in line]
    assert job["strategy"]["matrix"]["python"] == versions
    commands = [step["run"].split()[1] for step in job["steps"] if "run" in step]
    assert commands == ["lint", "test", "docs"]


def test_the_run_directory_page_lists_every_file():
    module = next(
        importlib.import_module(f"experiments.{name}")
        for name in ("run_directory", "rundir")
        if importlib.util.find_spec(f"experiments.{name}")
    )
    names = re.findall(r"^    ([\w*./]+) {2,}\S", module.__doc__ or "", re.MULTILINE)
    assert len(names) > 12
    page = PAGES["docs/run_directory.md"]
    for name in names:
        pattern = re.escape(name).replace(r"\*", r"[\w.]*")
        assert re.search(rf"`{pattern}`", page), name


# Words and turns that slow a native reader down.
AVOIDED = (
    *("anew", "beside", "ours", "documented", "of one's own", "for want of", "the matter of", "is told", "be told"),
    *(r"asked of", r"in place of", r"said so", r"takes 0\.\d+ of the time", r"that is no number", r"is no path"),
    r"an? (?:row|column|line|loss|value) an? \w+",
)


@pytest.mark.parametrize("page", PAGES)
def test_the_english_is_plain(page):
    text = " ".join(PAGES[page].split())
    if page == "docs/losses.md":  # its sections are docstrings; here its own text counts
        text = " ".join((ROOT / "docs" / "losses_template.md").read_text().split())
    found = [word for word in AVOIDED if re.search(rf"\b{word}\b", text, re.IGNORECASE)]
    assert not found
