"""Figures of a benchmark: statistics of the rounds, the JSON file and the table on the documentation page."""

import datetime
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import quantile_test

from experiments.config import ConfigError
from experiments.run_directory import write_atomically

FORMAT = 1
"""Version of the JSON file."""


def summarise(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and range of the rounds, and the rounds themselves."""
    quartiles = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 3
    return {
        "median": statistics.median(seconds),
        "quartiles": [quartiles[0], quartiles[2]],
        "range": [min(seconds), max(seconds)],
        "rounds": list(seconds),
    }


def ratio(seconds: Sequence[float], reference: Sequence[float]) -> float:
    """The median of the ratios of the rounds: what slows down a whole round does not change its ratio."""
    return statistics.median(a / b for a, b in zip(seconds, reference, strict=True))


def ratio_interval(seconds: Sequence[float], reference: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % confidence interval of `ratio`, from its order statistics; None for fewer than six rounds."""
    ratios = [a / b for a, b in zip(seconds, reference, strict=True)]
    low, high = quantile_test(ratios, q=1, p=0.5).confidence_interval(0.95)
    return (float(low), float(high)) if low == low and high == high else None


def milliseconds(value: float) -> str:
    """A time in milliseconds, with at least three digits."""
    value *= 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(summary: Mapping[str, Any]) -> str:
    """The range of the rounds in milliseconds."""
    return " to ".join(map(milliseconds, summary["range"]))


def check_new(path: str | None) -> None:
    """Refuses a JSON file that exists, before anything is measured; raises ConfigError."""
    if path and Path(path).exists():
        raise ConfigError(f"--json={path} exists already: name another file")


def write_json(path: str | None, command: str, options: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Writes `{"format", "command", "created", "options", ...}` to a new file; does nothing without a path."""
    if not path:
        return
    record = {
        "format": FORMAT,
        "command": command,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "options": dict(options),
        **content,
    }
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, json.dumps(record, indent=1) + "\n")


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; all columns but the first are aligned to the right."""
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def marks(place: str) -> tuple[str, str]:
    """The comments around a table of a documentation page."""
    return f"<!-- bench {place} -->", f"<!-- /bench {place} -->"


def read_marked(path: Path, place: str) -> tuple[str, str]:
    """Returns the text before and after the marked place; raises ConfigError if the marks are not there once each."""
    first, last = marks(place)
    text = path.read_text(encoding="utf-8")
    if text.count(first) != 1 or text.count(last) != 1 or text.index(first) > text.index(last):
        raise ConfigError(f"{path} has no place for the table: it needs the lines {first} and {last}, once each")
    return text[: text.index(first) + len(first)], text[text.index(last) :]


def write_marked(path: Path, place: str, body: str) -> None:
    """Replaces the text between the marks."""
    before, after = read_marked(path, place)
    write_atomically(path, f"{before}\n\n{body.strip()}\n\n{after}")  # Markdown wants blank lines around a comment
