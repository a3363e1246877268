"""Pictures show what is predicted and true, to the pixel, and appear under their names only when complete."""

import math
import warnings

import numpy as np
import pytest
from PIL import Image

from data_pipeline.sources.phantom import Phantoms
from experiments import plots
from experiments.plots import BOTH, PREDICTION, TRUTH, Case


def disc(size, centre, radius):
    y, x = np.ogrid[: size[0], : size[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


def read(path):
    return np.asarray(Image.open(path).convert("RGB"))


def has_colour(picture, colour):
    return bool((picture == np.array(colour)).all(-1).any())


HISTORY = [
    {"epoch": 1, "loss": 0.9, "val_loss": 0.8, "dice_coef": 0.1, "val_dice_coef": 0.2},
    {"epoch": 2, "loss": 0.5, "val_loss": 0.4, "dice_coef": 0.5, "val_dice_coef": 0.5},
    {"epoch": 3, "loss": 0.4, "val_loss": 0.4, "dice_coef": 0.6, "val_dice_coef": None},
    {"epoch": 4, "loss": 0.3, "val_loss": math.nan, "dice_coef": 0.7},
]


def test_the_best_epoch_is_the_first_of_the_lowest_validation_loss():
    assert plots.best_epoch(HISTORY) == 2
    assert plots.best_epoch([{"epoch": 1, "loss": 1.0}]) is None
    assert plots.best_epoch([{"epoch": 1, "val_loss": math.nan}]) is None


@pytest.mark.parametrize(
    ("history", "columns"),
    [
        (HISTORY, ("loss", "val_loss")),
        (HISTORY, ("loss", "val_loss", "dice_coef", "val_dice_coef")),
        (HISTORY[:1], ("accuracy", "val_accuracy")),  # columns the history lacks
        (HISTORY[3:], ("dice_coef", "val_loss")),
    ],
)
def test_curves_are_written_whatever_is_missing(tmp_path, history, columns):
    plots.curves(history, tmp_path / "new" / "curves.png", title="SYNTHETIC $x_1^", columns=columns)
    assert read(tmp_path / "new" / "curves.png").std() > 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["curves.png"]  # no partial file stays


def drawn(monkeypatch, history, columns, title="t"):
    """The figure that `curves` would save."""
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    plots.curves(history, "unused.png", title=title, columns=columns)
    return figures[0]


def test_curves_carry_the_title_and_mark_the_best_epoch(monkeypatch):
    figure = drawn(monkeypatch, HISTORY, ("dice_coef", "val_dice_coef"), title="SYNTHETIC slices")
    assert figure.get_suptitle() == "SYNTHETIC slices"
    (axes,) = figure.axes
    training, validation, line, mark = axes.lines
    np.testing.assert_array_equal(training.get_ydata(), [0.1, 0.5, 0.6, 0.7])
    np.testing.assert_array_equal(validation.get_ydata(), [0.2, 0.5, np.nan, np.nan])
    assert list(line.get_xdata()) == [2, 2]
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (2, 0.5)
    assert axes.get_xlabel() == "epoch"
    assert axes.get_ylabel() == "dice_coef"


FIGURES = {
    "brier": 0.0625,
    "expected_calibration_error": 0.25,
    "reliability": {
        "edges": [0.0, 0.25, 0.5, 0.75, 1.0],
        "pixels": [100000, 0, 1, 7],
        "predicted": [0.01, math.nan, 0.6, 0.9],
        "observed": [0.02, math.nan, 1.0, 0.5],
    },
}


def test_the_reliability_diagram_leaves_empty_bins_out_and_carries_title_and_errors(monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    plots.reliability(FIGURES, "unused.png", title="SYNTHETIC slices")
    (figure,) = figures
    assert figure.get_suptitle() == "SYNTHETIC slices"
    curve, pixels = figure.axes
    np.testing.assert_array_equal(curve.lines[1].get_xydata(), [[0.01, 0.02], [0.6, 1.0], [0.9, 0.5]])
    assert "0.2500" in curve.get_title(loc="left")
    assert "0.0625" in curve.get_title(loc="left")
    assert [bar.get_height() for bar in pixels.patches] == [100000, 0, 1, 7]
    assert pixels.get_yscale() == "log"


def test_the_reliability_diagram_is_written_without_a_warning(tmp_path):
    plots.reliability(FIGURES, tmp_path / "a.png", title="t")
    colours = {tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in (plots.VALIDATION_LINE, plots.TRAINING_LINE)}
    picture = read(tmp_path / "a.png")
    assert all(has_colour(picture, colour) for colour in colours)


def test_drawing_leaves_pyplot_alone(tmp_path):
    import matplotlib.pyplot as plt

    plots.curves(HISTORY, tmp_path / "a.png", title="t", columns=("loss", "val_loss"))
    assert plt.get_fignums() == []


def test_the_outline_lies_outside_of_the_region():
    mask = disc((32, 32), (16, 16), 5)
    line = plots.outline(mask)
    assert not (line & mask).any()
    assert plots.outline(mask, 2).sum() > line.sum()
    rows, columns = np.nonzero(line)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 22, 10, 22)  # one pixel around 11..21


def test_a_region_at_the_edge_is_closed_along_the_edge():
    mask = np.zeros((8, 8), bool)
    mask[:, :3] = True
    line = plots.outline(mask)
    assert line[:, 0].all() and line[0, :3].all() and line[:, 3].all()
    assert plots.outline(np.ones((8, 8), bool)).sum() == 28  # a mask of the whole picture has a line, too


def test_a_lesion_of_one_pixel_stays_visible():
    image = np.full((16, 16, 3), 90, np.uint8)
    mask = np.zeros((16, 16), bool)
    mask[7, 7] = True
    picture = plots.overlay(image, mask)
    assert tuple(picture[7, 7]) == (90, 90, 90)
    assert tuple(picture[6, 7]) == tuple(picture[7, 8]) == PREDICTION


def test_overlay_draws_exact_colours_and_never_wraps_around():
    image = np.full((20, 20, 3), 255, np.uint8)  # adding anything to 255 would wrap
    prediction, truth = disc((20, 20), (10, 8), 4), disc((20, 20), (10, 11), 4)
    picture = plots.overlay(image, prediction, truth)
    line, true_line = plots.outline(prediction), plots.outline(truth)
    assert (picture[line & ~true_line] == PREDICTION).all()
    assert (picture[true_line & ~line] == TRUTH).all()
    assert (picture[true_line & line] == BOTH).all() and (true_line & line).any()
    assert (picture[~(line | true_line)] == 255).all()
    assert (image == 255).all()  # the input is left alone


@pytest.mark.parametrize(("channels", "shown"), [(1, 10), (2, 20), (3, 20), (4, 20)])
def test_the_background_is_the_flair_channel_in_grey(channels, shown):
    image = np.broadcast_to(np.arange(10, 50, 10, dtype=np.uint8)[:channels], (6, 5, channels))
    picture = plots.overlay(image, np.zeros((6, 5), bool))
    assert picture.shape == (6, 5, 3)
    assert (picture == shown).all()


def test_lines_are_two_pixels_wide_on_large_images_only():
    for side, width in ((511, 1), (512, 2)):
        mask = np.zeros((8, side), bool)
        mask[:, :20] = True
        picture = plots.overlay(np.zeros((8, side, 3), np.uint8), mask)
        assert (picture[4, 20:40].any(-1)).sum() == width


def test_overlay_refuses_what_does_not_fit():
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="mask of shape"):
        plots.overlay(image, np.zeros((8, 9), bool))
    with pytest.raises(ValueError, match="uint8"):
        plots.overlay(image.astype(np.float32), np.zeros((8, 8), bool))


@pytest.mark.parametrize("size", [(1, 1), (3000, 40), (64, 64), (256, 256), (300, 1000)])
def test_a_thumbnail_keeps_the_smallest_lesion_and_the_figures_of_the_original(size):
    mask = np.zeros(size, bool)
    mask[size[0] // 2, size[1] // 2] = True
    case = Case("a", np.zeros((*size, 3), np.uint8), mask, mask, dice=1.0)
    small = plots.thumbnail(case)
    assert max(small.image.shape[:2]) == plots.TILE
    assert small.prediction.shape == small.truth.shape == small.image.shape[:2]
    assert small.prediction.any() and small.truth.any()
    share = 100 / mask.size
    assert small.note == f"Dice 1.000, {f'{share:.2f}' if share >= 0.01 else '<0.01'} % predicted"
    assert plots.thumbnail(small).note == small.note


def cases(count, truth=True):
    source = Phantoms(patients=3, size=(64, 64))
    found = []
    for index in range(count):
        image, mask = source.read(index)
        actual = mask[:, :, 0].astype(bool)
        found.append(Case(source.records[index].name, image, np.roll(actual, 3), actual if truth else None))
    return found


def test_a_contact_sheet_shows_both_outlines_and_a_legend(tmp_path):
    tiles = cases(20)
    assert any(tile.truth.any() for tile in tiles)
    plots.contact_sheet(tiles, tmp_path / "sheet.png", title="SYNTHETIC")
    picture = read(tmp_path / "sheet.png")
    assert has_colour(picture, PREDICTION) and has_colour(picture, TRUTH)
    assert picture.shape[1] == plots.GAP + 6 * (plots.TILE + plots.GAP)


def test_a_contact_sheet_without_truth_explains_the_prediction_only(tmp_path):
    plots.contact_sheet(cases(2, truth=False), tmp_path / "sheet.png", title="SYNTHETIC")
    picture = read(tmp_path / "sheet.png")
    assert has_colour(picture, PREDICTION)
    assert not has_colour(picture, TRUTH)


def test_pixels_of_a_contact_sheet_are_those_of_the_overlay(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (256, 256, 3), np.uint8)
    case = Case("a", image, disc((256, 256), (100, 100), 30))
    plots.contact_sheet([case], tmp_path / "sheet.png", title="t")
    expected = plots.overlay(image, case.prediction, width=2)
    page = plots.Page("t", 3 * 268 + 12, 300)
    found = read(tmp_path / "sheet.png")[page.head : page.head + 256, plots.GAP : plots.GAP + 256]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["$x^{", "脑_1.png", "a\nb", "x" * 300, "[red]"])
def test_odd_names_are_drawn_without_a_warning(tmp_path, name):
    case = cases(1)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.contact_sheet([Case(name, case.image, case.prediction)], tmp_path / "a.png", title=name)
    assert (tmp_path / "a.png").exists()


def test_a_gallery_has_one_row_per_case(tmp_path):
    items = cases(2)
    heights = []
    for count in (1, 2):
        plots.gallery(items[:count], tmp_path / "gallery.png", title="SYNTHETIC")
        heights.append(read(tmp_path / "gallery.png").shape[0])
    assert heights[1] - heights[0] == plots.TILE + 30


def test_an_empty_page_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        plots.contact_sheet([], tmp_path / "a.png", title="t")
    with pytest.raises(ValueError, match="at least one"):
        plots.gallery([], tmp_path / "a.png", title="t")


def test_best_median_and_worst_are_chosen_once_each():
    scores = [0.5, 0.9, math.nan, 0.1, 0.7, 0.3, 0.8]
    chosen = plots.best_median_worst(scores, 2)
    assert chosen == [("best", 1), ("best", 6), ("median", 4), ("median", 0), ("worst", 5), ("worst", 3)]
    few = plots.best_median_worst([0.2, 0.4, 0.3], 2)
    assert few == [("best", 1), ("best", 2), ("worst", 0)]
    assert plots.best_median_worst([], 2) == []


def test_a_picture_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    def broken(self, path, **_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", broken)
    (tmp_path / "a.png").write_bytes(b"old")
    with pytest.raises(OSError, match="No space"):
        plots.save_png(np.zeros((4, 4), np.uint8), tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"old"


def test_long_titles_take_two_lines_and_lose_their_middle_only():
    lines = plots.fold("SYNTHETIC " + "word " * 100 + "end", 40)
    assert len(lines) == 2
    assert all(len(line) <= 40 for line in lines)
    assert lines[0].startswith("SYNTHETIC") and lines[1].endswith("end")
    assert plots.fold("", 40) == [""]
