"""The README and the pages of docs/, and the commands in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
    if path.name != "losses_template.md"  # docs/losses.md is made of it
}
"""Text by path."""

README = PAGES["README.md"]
TEXT = "\n".join(PAGES.values())


def blocks(text: str, language: str) -> list[str]:
    """Contents of the code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def shell_commands(text: str) -> list[str]:
    """Lines of the shell blocks, without comments."""
    lines = [line.split("#")[0].strip() for block in blocks(text, "sh") for line in block.splitlines()]
    return [line for line in lines if line]


def python_commands(text: str) -> list[str]:
    """What follows `python -m` in shell blocks, in tables and in sentences."""
    shell = [command.partition(" -m ")[2] for command in shell_commands(text) if " -m " in command]
    inline = re.findall(r"`(?:python -m )?((?:experiments|data_pipeline)(?:\.\w+)? [^`]+)`", text)
    bare = re.findall(r"`python -m ([\w.]+)`", text)
    return list(dict.fromkeys(" ".join(command.split()) for command in (*shell, *inline, *bare)))
