"""Writes docs/losses.md: `python -m docs.losses`; or with new times and figures, `python -m docs.losses TIMES.json`.

TIMES.json is written by `python -m experiments.bench losses --json=TIMES.json`. The page is docs/losses_template.md,
filled from `jaxunet.losses.LOSSES` and from the times in docs/losses_cost.json; a test checks that it is up to date.
"""

import json
import math
import re
import string
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from docs.losses_figures import draw_all
from jaxunet.losses import LOSSES
from jaxunet.losses.entry import Loss
from tests.helpers import loss_peers

DOCS = Path(__file__).parent
PAGE, TEMPLATE, COST = DOCS / "losses.md", DOCS / "losses_template.md", DOCS / "losses_cost.json"
JAXUNET, SUITES = "jaxunet", ("MONAI", "smp")
"""Names in the file of times."""
FAMILIES = ("distribution", "region", "structural", "boundary", "compound")
PERFECT = {
    "zero": "",
    "lowest": "; a certain and correct prediction has the lowest value that the mask allows",
    "elsewhere": "; a certain and correct prediction does not have the lowest value",
}
SLOWER = {
    "normalized_focal": "an extra pass over the pixels finds the largest error, so that the sum of the factors cannot "
    "underflow if all pixels are correct.",
    "jaccard": "this is within the variation between rounds; in two other runs it was 1.05 and 1.08 times faster.",
    "lovasz_hinge": "the time goes into sorting. XLA needs two integer sorts to order all float32 numbers exactly; "
    "together they take as long as PyTorch's single sort of floats.",
}
"""Why another library is faster, by name of the loss; a test requires a reason for each."""
MONOTONE = "; never rises when the probability of a true pixel does"
CAPTION = """\
*Left of each pair: the loss for a disc of radius 20 with thin branches, predicted too small or too large (blue, by
pixels at the edge) or shifted (orange, by pixels). Right: the direction in which the gradient changes a prediction that
is shifted and has a false island, red up and blue down. The outline of the mask is solid, that of the prediction
dashed. The colour is the square root of the gradient divided by its largest entry.*
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
    """The table of all losses: one row per loss."""
    rows = []
    for name, entry in LOSSES.items():
        marks = ("yes" if mark else "" for mark in (entry.symmetric, entry.positional, entry.piecewise))
        time = cost["milliseconds"].get(name)
        cells = (f"[`{name}`](#{name})", entry.family, value_range(entry), *marks)
        peers = cost["ours_to_theirs"].get(name, {})
        speedups = (f"{1 / peers[suite]:.2g}" if suite in peers else "" for suite in SUITES)
        rows.append((*cells, cost["empty"].get(name, "not measured"), milliseconds(time), *speedups))
    names = (f"x faster than {suite}" for suite in SUITES)
    return table(("loss", "family", "range", "symmetric", "positional", "jumps", "empty mask", "ms", *names), rows)


def milliseconds(time: float | None) -> str:
    """A time with two digits; a loss that was added since the measurement has none."""
    return "not measured" if time is None else f"{time:.0f}" if time >= 10 else f"{time:.1f}"


def slower(cost: dict[str, Any]) -> str:
    """One line per loss that another library computes faster, with the reason."""
    lines = []
    for name, peers in cost["ours_to_theirs"].items():
        slower = [f"{ratio:.2f} times as long as {suite}" for suite, ratio in peers.items() if ratio > 1]
        if slower:
            lines.append(f"- `{name}` takes {' and '.join(slower)}: {SLOWER[name]}")
    return "\n".join(lines) or "Nowhere."


def differences() -> str:
    """One row per loss of another library with another value."""
    rows = []
    for difference in loss_peers.DIFFER:
        library, _, called = difference.peer.partition(".")
        inputs = difference.case.replace("_", " ")
        link = f"[`{difference.loss}`](#{difference.loss})"
        rows.append((link, f"{loss_peers.LIBRARIES[library]}: {called}", inputs, difference.what))
    return table(("loss", "library", "inputs", "difference"), rows)


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
    """The section of a loss, from `LOSSES` and its docstring."""
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
    """A default as it would be typed, with at most four digits."""
    if isinstance(value, tuple):
        return f"({', '.join(map(written, value))})"
    return f"{value:.4g}" if isinstance(value, float) and value != round(value) else str(value)


def linked(source: str) -> str:
    """A source with its arXiv numbers as links."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source)


def times(path: Path) -> dict[str, Any]:
    """The content of docs/losses_cost.json, from the figures of `experiments.bench losses`."""
    content = json.loads(path.read_text())
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in content["results"]:
        found.setdefault(row["loss"], {})[row["suite"]] = row
    machine = content["machine"]
    versions = {machine[suite]["version"]: None for suite in (JAXUNET, *SUITES) if suite in machine}
    return {
        "machine": f"{machine['processor']} ({', '.join(versions)})",
        "size": content["options"]["size"],
        "batch": content["options"]["batch"],
        "milliseconds": {name: float(f"{1e3 * found[name][JAXUNET]['step_seconds']['median']:.3g}") for name in LOSSES},
        "ours_to_theirs": {name: ratios for name in LOSSES if (ratios := time_ratios(found[name]))},
        "empty": {name: gradient_direction(name) for name in LOSSES},
    }


def time_ratios(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Time of jaxunet divided by that of each other library that was timed."""
    return {suite: round(row["ours_to_theirs"], 3) for suite, row in rows.items() if suite != JAXUNET}


def gradient_direction(name: str) -> str:
    """Where the gradient points for an empty mask if every probability is 0.5."""
    zeros = np.zeros((1, 24, 24, 1), np.float32)
    gradient = np.asarray(jax.jit(jax.grad(LOSSES[name].fn))(zeros, zeros))
    if not gradient.any():
        return "no gradient"
    if (gradient < 0).any():
        return "down and up"
    return "down" if gradient.all() else "down in part"


def main(arguments: list[str]) -> None:
    """Writes the page; with a file of times, also stores the times and draws the figures."""
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        raise SystemExit("usage: python -m docs.losses [FIGURES.json of python -m experiments.bench losses]")
    if arguments:
        try:
            cost = times(Path(arguments[0]))
            page(cost)  # before anything is written
        except OSError as error:
            raise SystemExit(f"{arguments[0]} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError) as error:
            raise SystemExit(
                f"{arguments[0]}: {error}; expected the figures of all losses, as `python -m experiments.bench losses "
                "--json=FILE` writes them, and a reason in SLOWER for each loss that another library computes faster"
            ) from error
        COST.write_text(json.dumps(cost, indent=1) + "\n")
        draw_all(cost["milliseconds"], DOCS)
    PAGE.write_text(page(json.loads(COST.read_text())))


if __name__ == "__main__":
    main(sys.argv[1:])
