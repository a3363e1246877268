"""Writes docs/losses.md: `python docs/losses.py`; or with new times and figures, `python docs/losses.py TIMES.json`.

TIMES.json is a file of `python -m experiments.bench losses --json=TIMES.json`. The page is docs/losses_template.md with
what `jaxunet.losses.LOSSES` says of each loss and what docs/losses_cost.json keeps of the times; a test holds it to
them.
"""

import json
import math
import re
import string
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # tests/ is not installed

from experiments.bench.losses import OURS, SUITES
from jaxunet.losses import LOSSES, Loss
from tests.helpers import loss_peers
from tests.helpers.loss_proof import on_empty

DOCS = Path(__file__).parent
PAGE, TEMPLATE, COST = DOCS / "losses.md", DOCS / "losses_template.md", DOCS / "losses_cost.json"
FAMILIES = ("distribution", "region", "structural", "boundary", "compound")
PERFECT = {
    "zero": "",
    "lowest": "; a certain and right prediction has the lowest value that the mask allows",
    "elsewhere": "; a certain and right prediction is not the lowest",
}
SLOWER = {
    "normalized_focal": "ours first finds the largest error, so that the sum of the factors cannot underflow where all "
    "pixels are right: one more pass over the pixels.",
    "jaccard": "within the scatter of the turns; in two other runs it was 0.93 and 0.95.",
    "lovasz_hinge": "the sort. It takes XLA two sorts of integers to order all float32 numbers exactly; PyTorch's one "
    "sort of floats is as fast as both.",
}
"""Why another library is faster, by our name; a test wants a reason for each."""
MONOTONE = "; never rises where a true pixel gains"
CAPTION = """\
*Left of each pair: the loss of a disc of radius 20 with thin branches that is predicted too small or too large (blue,
by the pixels at its edge) or beside its place (orange, by the pixels of the shift). Right: where the gradient pushes a
prediction that is shifted and has a false island, red up and blue down; solid the mask's outline, dashed the
prediction's. The colour is the square root of the gradient over its largest entry.*
"""


def page(cost: dict[str, Any]) -> str:
    """The page as text, with the contents of docs/losses_cost.json."""
    parts = {family: family_text(family) for family in FAMILIES}
    parts |= {"glance": glance(cost), "differences": differences(), "count": str(len(LOSSES))}
    parts |= {"machine": cost["machine"], "size": str(cost["size"]), "batch": str(cost["batch"])}
    ratios = [ratio for peers in cost["ours_to_theirs"].values() for ratio in peers.values()]
    parts |= {"slower": slower(cost)}
    parts |= {"faster": str(sum(ratio <= 1 for ratio in ratios)), "compared": str(len(ratios))}
    return string.Template(TEMPLATE.read_text()).substitute(parts)


def glance(cost: dict[str, Any]) -> str:
    """A row a loss, and its cost."""
    rows = []
    for name, entry in LOSSES.items():
        marks = ("yes" if mark else "" for mark in (entry.symmetric, entry.positional, entry.piecewise))
        time = cost["milliseconds"][name]
        cells = (f"[`{name}`](#{name})", entry.family, value_range(entry), *marks)
        peers = cost["ours_to_theirs"].get(name, {})
        shares = (f"{peers[suite]:.2f}" if suite in peers else "" for suite in SUITES if suite != OURS)
        rows.append((*cells, cost["empty"][name], f"{time:.0f}" if time >= 10 else f"{time:.1f}", *shares))
    names = (f"of {suite}'s" for suite in SUITES if suite != OURS)
    return table(("loss", "family", "range", "symmetric", "positional", "jumps", "empty mask", "ms", *names), rows)


def slower(cost: dict[str, Any]) -> str:
    """A line a loss that another library computes in less time, with the reason."""
    lines = []
    for name, peers in cost["ours_to_theirs"].items():
        shares = [f"{ratio:.2f} of {suite}'s" for suite, ratio in peers.items() if ratio > 1]
        if shares:
            lines.append(f"- `{name}`, {' and '.join(shares)} time: {SLOWER[name]}")
    return "\n".join(lines) or "Nowhere."


def differences() -> str:
    """A row a loss of another library that has another value."""
    rows = []
    for difference in loss_peers.DIFFER:
        library, _, called = difference.peer.partition(".")
        inputs = difference.case.replace("_", " ")
        link = f"[`{difference.loss}`](#{difference.loss})"
        rows.append((link, f"{loss_peers.LIBRARIES[library]}: {called}", inputs, difference.what))
    return table(("loss", "library", "inputs", "what it does"), rows)


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    heading = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n"
    return heading + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def family_text(family: str) -> str:
    """The figure of a family, and a section for each of its losses."""
    figure = f"![{family} losses against the quality of a prediction, and their gradients](losses_{family}.png)\n"
    sections = [section(name, entry) for name, entry in LOSSES.items() if entry.family == family]
    return "\n".join([figure, CAPTION, *sections])


def section(name: str, entry: Loss) -> str:
    """What `LOSSES` and the docstring say of a loss."""
    summary = " ".join((entry.fn.__doc__ or "").split("\n\n")[0].split())
    options = ", ".join(f"`{option}={written(value)}`" for option, value in entry.options.items()) or "none"
    lines = [
        f"### {name}\n\n{summary}\n",
        f"- Formula: `{entry.formula}`",
        f"- Range: {value_range(entry)}{PERFECT[entry.perfect]}{MONOTONE * entry.monotone}",
        f"- Empty mask: {entry.on_empty}",
        f"- Options: {options}",
        f"- Source: {linked(entry.source)}",
    ]
    return "\n".join(lines) + "\n"


def value_range(entry: Loss) -> str:
    """Lowest and highest value in words."""
    low, high = entry.range
    if math.isinf(low):
        return "either sign"
    return f"{low:.3g} upwards" if math.isinf(high) else f"{low:.3g} to {high:.3g}"


def written(value: Any) -> str:
    """A default as one would type it, with four digits at most."""
    if isinstance(value, tuple):
        return f"({', '.join(map(written, value))})"
    return f"{value:.4g}" if isinstance(value, float) and value != round(value) else str(value)


def linked(source: str) -> str:
    """A source with its arXiv numbers as links."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source)


def times(path: Path) -> dict[str, Any]:
    """What docs/losses_cost.json holds, from the figures of `experiments.bench losses`."""
    content = json.loads(path.read_text())
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in content["results"]:
        found.setdefault(row["loss"], {})[row["suite"]] = row
    machine = content["machine"]
    versions = {machine[suite]["version"]: None for suite in SUITES if suite in machine}
    return {
        "machine": f"{machine['processor']} ({', '.join(versions)})",
        "size": content["options"]["size"],
        "batch": content["options"]["batch"],
        "milliseconds": {name: float(f"{1e3 * found[name][OURS]['step_seconds']['median']:.3g}") for name in LOSSES},
        "ours_to_theirs": {
            name: peers
            for name in LOSSES
            if (
                peers := {suite: round(row["ours_to_theirs"], 3) for suite, row in found[name].items() if suite != OURS}
            )
        },
        "empty": {name: on_empty(name) for name in LOSSES},
    }


def main(arguments: list[str]) -> None:
    """Writes the page; with a file of times, keeps them and draws the figures as well."""
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        raise SystemExit("usage: python docs/losses.py [FIGURES.json of python -m experiments.bench losses]")
    if arguments:
        from losses_figures import draw_all  # beside this file

        try:
            cost = times(Path(arguments[0]))
            page(cost)  # before anything is written
        except OSError as error:
            raise SystemExit(f"{arguments[0]} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError) as error:
            raise SystemExit(
                f"{arguments[0]}: {error}; expected the figures of all losses, as `python -m experiments.bench losses "
                "--json=FILE` writes them, and a reason in SLOWER for each that another library computes faster"
            ) from error
        COST.write_text(json.dumps(cost, indent=1) + "\n")
        draw_all(cost["milliseconds"], DOCS)
    PAGE.write_text(page(json.loads(COST.read_text())))


if __name__ == "__main__":
    main(sys.argv[1:])
