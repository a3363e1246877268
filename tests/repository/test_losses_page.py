"""docs/losses.md is what `LOSSES` says, and what it refers to exists."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from jaxunet.losses import LOSSES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def writer():
    spec = importlib.util.spec_from_file_location("losses_page", DOCS / "losses.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(writer):
    text = writer.page(json.loads((DOCS / "losses_cost.json").read_text()))
    assert text == (DOCS / "losses.md").read_text(), "run python -m docs.losses"


def test_every_loss_has_a_section_and_a_row_with_its_time():
    text = (DOCS / "losses.md").read_text()
    cost = json.loads((DOCS / "losses_cost.json").read_text())
    assert len(cost["milliseconds"]) >= 54 and set(cost["milliseconds"]) == set(cost["empty"]) <= set(LOSSES)
    assert re.findall(r"^### (\w+)$", text, re.MULTILINE) == sorted(
        LOSSES,
        key=lambda name: ["distribution", "region", "structural", "boundary", "compound"].index(LOSSES[name].family),
    )
    for name, entry in LOSSES.items():
        assert f"| [`{name}`](#{name}) | {entry.family} |" in text
        assert f"`{entry.formula}`" in text
        row = next(line for line in text.splitlines() if line.startswith(f"| [`{name}`](#{name}) |"))
        assert ("not measured" in row) == (name not in cost["milliseconds"])


def test_links_and_figures_lead_somewhere():
    text = (DOCS / "losses.md").read_text()
    headings = {
        re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", text)) <= headings
    figures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(figures) == 6
    for figure in figures:
        assert (DOCS / figure).stat().st_size < 400_000


def test_the_guide_recommends_losses_that_exist():
    text = (DOCS / "losses_template.md").read_text()
    guide = text[text.index("## Which one") : text.index("## All losses at")]
    cells = [row.split("|")[2] for row in guide.splitlines() if row.startswith("| ")][2:]
    names = {name for cell in cells for name in re.findall(r"`([a-z0-9_]+)`", cell)}
    assert len(names) > 15
    assert names - {"alpha", "beta"} <= LOSSES.keys()
