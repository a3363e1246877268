"""Functions that mkdocs calls while it builds the site (`hooks` in mkdocs.yml).

They add the API reference, one page per module, which mkdocstrings writes from the docstrings. These pages exist only
while the site is built, so a new or renamed module needs no change here.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PACKAGES = ("jaxunet", "data_pipeline", "experiments")
LEFT_OUT = ("experiments.bench.",)  # internals of the benchmark


def modules(package: str) -> list[str]:
    """Dotted names of the modules of a package, in the order of the site."""
    names = []
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] != "__main__":
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return sorted(name for name in names if not name.startswith(LEFT_OUT))


def page(module: str) -> str:
    """Path of the page of a module."""
    return f"api/{module}.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Appends the pages to the navigation, one group per package."""
    groups = [
        {package: [{name.removeprefix(f"{package}."): page(name)} for name in modules(package)]} for package in PACKAGES
    ]
    assert config.nav is not None
    config.nav.append({"API reference": groups})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages themselves."""
    for package in PACKAGES:
        for module in modules(package):
            files.append(File.generated(config, page(module), content=f"# {module}\n\n::: {module}\n"))
    return files


def on_page_content(html: str, **_: object) -> str:
    """Keeps the groups of a long number, as in 31 110 001, on one line."""
    return re.sub(r"(?<=\d) (?=\d{3}\b)", "\u00a0", html)
