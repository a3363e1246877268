"""The notebook on loss research runs from its first cell to its last, and what is stored in it is its own output."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.programs import compiler_flags

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "experiments" / "loss_research.ipynb"


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_cell_was_run_in_order_and_none_failed():
    cells = code(nbformat.read(NOTEBOOK, as_version=4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(output.output_type != "error" for cell in cells for output in cell.outputs)
    printed = "".join(output.get("text", "") for cell in cells for output in cell.outputs)
    assert "SYNTHETIC PHANTOMS, NOT REAL DATA" in printed
    assert str(Path.home()) not in NOTEBOOK.read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XLA_FLAGS", compiler_flags())  # one device, as a reader has
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert any("compiled 1 time" in output.get("text", "") for cell in code(notebook) for output in cell.outputs)
