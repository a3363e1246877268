"""Tables show every cell whole at any width; progress is a line per minute where there is no terminal."""

import io

import pytest
from rich.console import Console

from experiments import console


def printed(function, *args, width=120, **kwargs):
    out = io.StringIO()
    function(*args, to=Console(file=out, width=width), **kwargs)
    return out.getvalue()


def test_a_table_shows_every_cell_and_the_title():
    text = printed(console.table, "Phantoms", ["file", "pixels"], [["a[b].png", 31110001], ["[red]", 7]])
    assert "Phantoms" in text
    assert "a[b].png" in text  # square brackets are no markup
    assert "[red]" in text
    assert "31 110 001" in text


def test_numbers_are_aligned_to_the_right_also_where_they_are_text():
    rows = [["a", "0.5"], ["b", "undefined"], ["c", ""], ["d", "12.25"]]
    text = printed(console.table, "t", ["score", "value"], rows)
    ends = {len(line.rstrip()) for line in text.splitlines() if line.split()[:1] in (["a"], ["b"], ["d"])}
    assert len(ends) == 1


@pytest.mark.parametrize("width", range(34, 130, 4))
def test_a_narrow_console_gets_every_cell_whole_and_every_heading(width):
    columns = ["contender", "ms per step", "least to most", "% of matmul peak", "95 % interval", "note"]
    rows = [["plain Flax (small)", "1080", "1029 to 1161", "52", "0.55 to 0.71", "[b] " + "word " * 9]]
    rows += [["MONAI", "5", "4 to 6", "-", "-", ""]]
    text = printed(console.table, "title", columns, rows, width=width)
    lines, words = text.splitlines(), text.split()
    assert max(map(len, lines)) <= width
    assert words.count("Flax") == words.count("MONAI") == 1
    for cell in ("1080", "1029 to 1161", "0.55 to 0.71", "4 to 6"):
        assert sum(cell in line for line in lines) == 1
    assert words.count("word") == 9
    assert {word for heading in columns for word in heading.split()} <= set(words)


def test_a_table_that_does_not_fit_becomes_a_list_of_headings_and_values_per_row():
    columns = ["score", "mean of all slices", "mean of tumour slices"]
    text = printed(console.table, "title", columns, [["dice", 0.5, None], ["jaccard", 0.25, 31]], width=26)
    assert [line.split()[-1] for line in text.splitlines() if line.strip()][1:] == [
        "dice", "0.5000", "slices", "-", "slices", "jaccard", "0.2500", "slices", "31", "slices"
    ]  # fmt: skip


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="1 values in a table of 2 columns"):
        printed(console.table, "t", ["a", "b"], [[1]])
