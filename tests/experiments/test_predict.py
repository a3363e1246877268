import csv
import dataclasses
import io
import json
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from data_pipeline.source import DataError
from experiments import build, export, infer, predict
from experiments.build import Run
from experiments.cli import run_program
from experiments.config import Config, ConfigError, override, to_json
from experiments.folder import find_pictures, output_names, read_picture
from experiments.pictures import PREDICTION, TRUTH
from experiments.predictor import Predictor
from jaxunet.checkpoint import Checkpoints, load_weights
from jaxunet.sharding import make_mesh

SIZE = (16, 32)


class RedIsTumour:
    """Stands in for a network: the probability is high where the first channel is, the weight shifts it."""

    def __init__(self, classes=1):
        self.classes = classes

    def apply(self, variables, images):
        logits = (images[..., :1].astype("float32") - 128) / 8 + variables["params"]["shift"]
        return jax.numpy.concatenate([logits * (-1) ** k for k in range(self.classes)], axis=-1)


def run_of(directory, *, shift=0.0, classes=1, channels=3, **options):
    config = override(
        Config(),
        {
            "model.image_height": SIZE[0],
            "model.image_width": SIZE[1],
            "model.image_channels": channels,
            "model.num_classes": classes,
            **{f"infer.{name}": str(value) if isinstance(value, Path) else value for name, value in options.items()},
        },
    )
    manifest = {"dataset": {"title": "SYNTHETIC"}}
    params = {"shift": np.float32(shift)}
    return Run(directory, config, RedIsTumour(classes), params, make_mesh(), manifest, {})


def predictor(*, batch_size=8, classes=1, channels=3):
    return Predictor(
        RedIsTumour(classes), {"shift": np.float32(0)}, image_shape=(*SIZE, channels), batch_size=batch_size
    )


def red(size=SIZE, box=(4, 10, 5, 20)):
    image = np.zeros((*size, 3), np.uint8)
    image[..., 1] = 50
    image[box[0] : box[1], box[2] : box[3], 0] = 255
    return image


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def pixels(path):
    return np.asarray(Image.open(path))


def go(run, **kwargs):
    out = io.StringIO()
    return predict.predict_run(run, console=Console(file=out, width=160), **kwargs), out.getvalue()


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# Writing


@pytest.mark.parametrize("extension", ["png", "tif", "tiff", "bmp", "jpg", "jpeg", "PNG"])
def test_an_image_becomes_three_pictures_of_its_own_size(tmp_path, extension):
    size = (24, 50)
    save(tmp_path / "in" / f"a.{extension}", red(size, (6, 15, 8, 30)))
    outcomes, text = go(run_of(tmp_path / "run", images=tmp_path / "in"))
    folder = tmp_path / "run" / "predictions" / "in"
    expected = ["a_mask.png", "a_overlay.png", "a_probability.png", "contact_sheet.png", "predictions.csv"]
    assert names(tmp_path / "run") == expected
    mask, probability, overlay = (pixels(folder / f"a_{kind}.png") for kind in ("mask", "probability", "overlay"))
    assert mask.shape == probability.shape == size and overlay.shape == (*size, 3)
    assert mask.dtype == probability.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 255}
    assert mask[10, 18] == 255 and mask[2, 2] == 0 and mask[20, 45] == 0
    assert probability[10, 18] > 250 and probability[20, 45] < 5
    assert (overlay == PREDICTION).all(-1).any()
    assert outcomes[0].tumour_pixels == (mask == 255).sum()
    assert "tumour predicted in" in text


def test_at_the_size_of_the_network_the_mask_is_exact(tmp_path):
    save(tmp_path / "in" / "a.png", red())
    go(run_of(tmp_path / "run", images=tmp_path / "in", output_dir=tmp_path / "out"))
    np.testing.assert_array_equal(pixels(tmp_path / "out" / "a_mask.png"), red()[:, :, 0])


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (700, 5), (1024, 1024)])
def test_odd_sizes_come_back_as_they_were(tmp_path, size):
    save(tmp_path / "a.png", np.full((*size, 3), 255, np.uint8))
    go(run_of(tmp_path / "run", images=tmp_path / "a.png", output_dir=tmp_path / "out"))
    for kind in ("mask", "probability", "overlay"):
        assert pixels(tmp_path / "out" / f"a_{kind}.png").shape[:2] == size
    assert (pixels(tmp_path / "out" / "a_mask.png") == 255).all()


def test_bad_files_are_reported_and_the_others_done(tmp_path):
    folder = tmp_path / "in"
    for k in range(8):
        save(folder / f"good{k}.png", red())
    (folder / "broken.png").write_bytes((folder / "good0.png").read_bytes()[:100])
    save(folder / "sixteen.png", np.full((8, 8), 300, np.uint16))
    run = run_of(tmp_path / "run", images=folder, output_dir=tmp_path / "out", batch_size=3)
    outcomes, text = go(run)
    assert [o.picture.path.name for o in outcomes] == sorted(path.name for path in folder.iterdir())
    assert [o.picture.output for o in outcomes if o.error] == ["broken", "sixteen"]
    assert [line.split() for line in text.splitlines() if line.split()[:1] in (["ok"], ["failed"])] == [
        ["ok", "8"],
        ["failed", "2"],
    ]
    with pytest.raises(DataError, match=r"8 ok, 2 failed:\n.*truncated.*broken\.png\n.*sixteen\.png"):
        predict.raise_failures(outcomes)
    assert len(list((tmp_path / "out").glob("*_mask.png"))) == 8
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["file"] for row in rows if row["error"]] == ["broken.png", "sixteen.png"]
    assert {row["tumour_pixels"] for row in rows if not row["error"]} == {"90"}


def test_only_bad_files_are_no_crash(tmp_path):
    save(tmp_path / "in" / "a.png", np.full((8, 8), 300, np.uint16))
    outcomes, _ = go(run_of(tmp_path / "run", images=tmp_path / "in", output_dir=tmp_path / "out"))
    assert names(tmp_path / "out") == ["predictions.csv"]
    assert outcomes[0].error


def test_an_output_that_is_no_number_writes_no_picture_and_is_a_numeric_error(tmp_path):
    save(tmp_path / "in" / "a.png", red((40, 40)))
    outcomes, _ = go(run_of(tmp_path / "run", shift=np.nan, images=tmp_path / "in", output_dir=tmp_path / "out"))
    assert names(tmp_path / "out") == ["predictions.csv"]
    with pytest.raises(ArithmeticError, match="not finite") as error:
        predict.raise_failures(outcomes)
    assert type(error.value).exit_code == 3


def test_files_of_one_name_have_outputs_of_their_own(tmp_path):
    paths = [Path(name) for name in ("a.png", "a.tif", "a.1.tif", "A.PNG", "a_png.bmp", "b.jpg")]
    found = output_names(paths)
    assert len({name.casefold() for name in found}) == len(paths)
    assert found == ["a_png_2", "a_tif", "a.1", "A_png_3", "a_png", "b"]
    save(tmp_path / "in" / "a.png", red())
    save(tmp_path / "in" / "a.tif", np.zeros_like(red()))
    go(run_of(tmp_path / "run", images=tmp_path / "in", output_dir=tmp_path / "out"))
    assert pixels(tmp_path / "out" / "a_png_mask.png").any()
    assert not pixels(tmp_path / "out" / "a_tif_mask.png").any()


def test_nothing_is_written_over_unless_told(tmp_path):
    save(tmp_path / "in" / "a.png", red())
    out = tmp_path / "out"
    out.mkdir()
    (out / "a_mask.png").write_bytes(b"mine")
    (out / "other.txt").write_bytes(b"mine")
    run = run_of(tmp_path / "run", images=tmp_path / "in", output_dir=out)
    with pytest.raises(ConfigError, match=r"a_mask\.png exist already.*--infer\.overwrite"):
        go(run)
    assert names(out) == ["a_mask.png", "other.txt"]
    assert (out / "a_mask.png").read_bytes() == b"mine"
    go(run_of(tmp_path / "run", images=tmp_path / "in", output_dir=out, overwrite=True))
    assert pixels(out / "a_mask.png").any()
    assert (out / "other.txt").read_bytes() == b"mine"


@pytest.mark.parametrize("option", ["output_dir", "merged_dir"])
@pytest.mark.parametrize("place", ["in", "link", "masks"])
def test_the_output_never_goes_where_images_are_read(tmp_path, option, place):
    save(tmp_path / "in" / "a.png", red())
    save(tmp_path / "masks" / "a.png", red()[:, :, 0])
    (tmp_path / "link").symlink_to(tmp_path / "in")
    options = {"images": tmp_path / "in", "masks": tmp_path / "masks", option: tmp_path / place}
    with pytest.raises(ConfigError, match="where images are read"):
        go(run_of(tmp_path / "run", **options))
    assert names(tmp_path / "in") == ["a.png"]


def test_an_output_folder_that_is_a_file_is_refused(tmp_path):
    save(tmp_path / "in" / "a.png", red())
    (tmp_path / "out").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="which is a file"):
        go(run_of(tmp_path / "run", images=tmp_path / "in", output_dir=tmp_path / "out"))


def test_overlays_go_to_their_own_folder_and_masks_can_be_left_out(tmp_path):
    save(tmp_path / "in" / "a.png", red())
    options = {"output_dir": tmp_path / "out", "merged_dir": tmp_path / "merged", "binarize": False}
    go(run_of(tmp_path / "run", images=tmp_path / "in", **options))
    assert names(tmp_path / "merged") == ["a_overlay.png"]
    assert names(tmp_path / "out") == ["a_probability.png", "contact_sheet.png", "predictions.csv"]


def test_the_threshold_is_one_of_probability_and_is_exceeded(tmp_path):
    image = np.zeros((*SIZE, 3), np.uint8)
    image[:, :16, 0], image[:, 16:, 0] = 128, 129  # probability 0.5 exactly, and above it
    save(tmp_path / "in" / "a.png", image)
    for threshold, columns in ((0.5, 16), (0.49, 32), (0.54, 0)):
        options = {"output_dir": tmp_path / str(threshold), "threshold": threshold}
        (outcome,), _ = go(run_of(tmp_path / "run", images=tmp_path / "in", **options))
        assert outcome.tumour_pixels == 16 * columns


def test_blur_smooths_probabilities_before_the_threshold(tmp_path):
    image = red(box=(8, 9, 16, 17))  # a single pixel
    save(tmp_path / "in" / "a.png", image)
    (sharp,), _ = go(run_of(tmp_path / "run", images=tmp_path / "in", output_dir=tmp_path / "sharp"))
    (soft,), _ = go(run_of(tmp_path / "run", images=tmp_path / "in", output_dir=tmp_path / "soft", blur=2.0))
    assert (sharp.tumour_pixels, soft.tumour_pixels) == (1, 0)
    assert 0.03 < soft.peak < 0.05  # 1 / (2 pi 2^2)
    save(tmp_path / "in" / "a.png", red())
    (soft,), _ = go(run_of(tmp_path / "run", images=tmp_path / "in", output_dir=tmp_path / "large", blur=1.0))
    assert abs(soft.tumour_pixels - 90) <= 8  # a blurred mask does not grow by a rim


def test_every_class_has_pictures_of_its_own(tmp_path):
    save(tmp_path / "in" / "a.png", red())
    go(run_of(tmp_path / "run", images=tmp_path / "in", output_dir=tmp_path / "out", classes=2))
    first, second = (pixels(tmp_path / "out" / f"a_mask_{k}.png") for k in (0, 1))
    np.testing.assert_array_equal(second, 255 - first)
    options = {"images": tmp_path / "in", "output_dir": tmp_path / "blurred", "classes": 2, "blur": 0.7}
    go(run_of(tmp_path / "run", **options))
    assert pixels(tmp_path / "blurred" / "a_probability_0.png")[7, 12] > 250  # classes are not blurred into each other


def test_a_contact_sheet_shows_24_of_many(tmp_path):
    for k in range(30):
        save(tmp_path / "in" / f"{k:02d}.png", red())
    outcomes, _ = go(run_of(tmp_path / "run", images=tmp_path / "in", output_dir=tmp_path / "out"))
    assert len(outcomes) == 30
    assert sum(outcome.case is not None for outcome in outcomes) == predict.SHEET_TILES
    assert outcomes[0].case is not None and outcomes[-1].case is not None
    assert (pixels(tmp_path / "out" / "contact_sheet.png")[:, :, :3] == PREDICTION).all(-1).any()


def test_processes_divide_the_files(tmp_path):
    for k in range(5):
        save(tmp_path / "in" / f"{k}.png", red())
    run = run_of(tmp_path / "run", images=tmp_path / "in", output_dir=tmp_path / "out")
    parts = [[o.picture.output for o in go(run, share=(rank, 2))[0]] for rank in (0, 1)]
    assert parts == [["0", "2", "4"], ["1", "3"]]
    assert {"contact_sheet.png", "contact_sheet_1.png", "predictions_1.csv"} <= set(names(tmp_path / "out"))


def test_a_process_without_a_file_of_its_own_predicts_none(tmp_path):
    save(tmp_path / "in" / "0.png", red())
    run = run_of(tmp_path / "run", images=tmp_path / "in", output_dir=tmp_path / "out")
    assert go(run, share=(1, 2))[0] == []
    assert names(tmp_path / "out") == ["predictions_1.csv"]


# Truth


def test_true_masks_are_drawn_and_scored(tmp_path):
    save(tmp_path / "in" / "a.png", red())
    save(tmp_path / "in" / "b.png", np.zeros_like(red()))
    save(tmp_path / "masks" / "a_mask.tif", red(box=(4, 10, 5, 12))[:, :, 0])
    save(tmp_path / "masks" / "b.png", np.zeros(SIZE, np.uint8))
    options = {"images": tmp_path / "in", "masks": tmp_path / "masks", "output_dir": tmp_path / "out"}
    (a, b), text = go(run_of(tmp_path / "run", **options))
    assert a.dice == pytest.approx(2 * 42 / (90 + 42))
    assert b.dice == 1  # both empty
    assert (pixels(tmp_path / "out" / "a_overlay.png") == TRUTH).all(-1).any()
    assert "mean Dice of 2 images with a mask" in text


def test_a_mask_of_another_size_fails_its_image_only(tmp_path):
    save(tmp_path / "in" / "a.png", red())
    save(tmp_path / "in" / "b.png", red())
    save(tmp_path / "masks" / "a.png", np.zeros((5, 5), np.uint8))
    save(tmp_path / "masks" / "b.png", np.zeros(SIZE, np.uint8))
    options = {"images": tmp_path / "in", "masks": tmp_path / "masks", "output_dir": tmp_path / "out"}
    (a, b), _ = go(run_of(tmp_path / "run", **options))
    assert "image of 16x32 but mask of 5x5" in a.error
    assert not b.error


def test_a_grey_mask_needs_a_threshold(tmp_path):
    save(tmp_path / "in" / "a.png", red())
    save(tmp_path / "masks" / "a.png", np.arange(512, dtype=np.uint8).reshape(SIZE))
    run = run_of(tmp_path / "run", images=tmp_path / "in", masks=tmp_path / "masks", output_dir=tmp_path / "out")
    assert "data.mask_threshold" in go(run)[0][0].error
    config = override(run.config, {"data.mask_threshold": 127, "infer.overwrite": True})
    assert not go(dataclasses.replace(run, config=config))[0][0].error


def test_masks_that_are_missing_or_double_are_named(tmp_path):
    for name in "abc":
        save(tmp_path / "in" / f"{name}.png", red())
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match="none of 3 images has a mask"):
        find_pictures(tmp_path / "in", tmp_path / "masks")
    for name in ("a.png", "a_mask.png", "b_mask.tif"):
        save(tmp_path / "masks" / name, red()[:, :, 0])
    (a, b, c), notes = find_pictures(tmp_path / "in", tmp_path / "masks")
    assert "two masks for" in a.problem
    assert b.mask is not None and b.mask.name == "b_mask.tif"
    assert c.mask is None and not c.problem
    assert notes == [f"1 of 3 images have no mask in {tmp_path / 'masks'}: c.png"]


# Files


def test_masks_beside_images_are_no_images(tmp_path):
    for name in ("a.tif", "a_mask.tif", "only_mask.tif", ".hidden.png", "._a.tif", "notes.txt"):
        save(tmp_path / name, red()) if name.endswith(("tif", "png")) else (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    pictures, notes = find_pictures(tmp_path)
    assert [p.path.name for p in pictures] == ["a.tif", "only_mask.tif"]
    assert any("1 masks beside the images" in note for note in notes)
    assert any("notes.txt" in note for note in notes)
    assert any("folder.png" in note for note in notes)
    (a, _), _ = find_pictures(tmp_path, tmp_path)
    assert a.mask == tmp_path / "a_mask.tif"


def test_a_missing_or_empty_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        find_pictures(tmp_path / "none")
    (tmp_path / "patient").mkdir()
    with pytest.raises(DataError, match="holds the folders patient: name one of them"):
        find_pictures(tmp_path)


def test_a_broken_link_fails_alone(tmp_path):
    save(tmp_path / "in" / "a.png", red())
    (tmp_path / "in" / "b.png").symlink_to(tmp_path / "gone.png")
    outcomes, _ = go(run_of(tmp_path / "run", images=tmp_path / "in", output_dir=tmp_path / "out"))
    assert [bool(outcome.error) for outcome in outcomes] == [False, True]


def test_colours_are_read_in_order(tmp_path):
    colour = np.broadcast_to(np.array([10, 20, 30], np.uint8), (4, 5, 3))
    image, notes = read_picture(save(tmp_path / "a.png", colour), 3)
    np.testing.assert_array_equal(image, colour)
    assert notes == ()


def test_grey_is_repeated_and_transparency_dropped_with_a_note(tmp_path):
    grey, notes = read_picture(save(tmp_path / "a.png", np.full((4, 5), 7, np.uint8)), 3)
    assert grey.shape == (4, 5, 3) and (grey == 7).all()
    assert notes == ("grey: repeated in three channels",)
    clear = np.broadcast_to(np.array([1, 2, 3, 0], np.uint8), (4, 5, 4))
    image, notes = read_picture(save(tmp_path / "b.png", clear), 3)
    np.testing.assert_array_equal(image, clear[:, :, :3])
    assert notes == ("with transparency: it was dropped",)
    save(tmp_path / "in" / "c.png", np.full(SIZE, 7, np.uint8))
    _, text = go(run_of(tmp_path / "run", images=tmp_path / "in", output_dir=tmp_path / "out"))
    assert "note: 1 image grey: repeated in three channels" in text


def test_three_sequences_are_not_mixed_into_one(tmp_path):
    with pytest.raises(DataError, match="expected 8-bit grey"):
        read_picture(save(tmp_path / "a.png", red()), 1)
    image, notes = read_picture(save(tmp_path / "b.png", np.full((4, 5, 3), 9, np.uint8)), 1)
    assert image.shape == (4, 5, 1) and (image == 9).all() and notes


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_refused(tmp_path, channels):
    save(tmp_path / "a.tif", np.full((4, 5), 300, np.uint16))
    with pytest.raises(DataError, match=r"16.*a\.tif"):
        read_picture(tmp_path / "a.tif", channels)


# From Python


def test_a_predictor_takes_one_image_a_batch_or_a_list():
    predict_ = predictor()
    image = red()
    single = predict_(image)
    assert single.shape == (*SIZE, 1) and single.dtype == np.float32
    expected = 1 / (1 + np.exp(-(image[..., :1].astype(np.float64) - 128) / 8))
    np.testing.assert_allclose(single, expected, atol=1e-6)
    batch = predict_(np.stack([image] * 11))
    assert batch.shape == (11, *SIZE, 1)
    np.testing.assert_array_equal(batch[10], single)
    results = predict_([image, red((40, 9)), red((3, 5))])
    assert [result.shape for result in results] == [(*SIZE, 1), (40, 9, 1), (3, 5, 1)]
    np.testing.assert_array_equal(predict_(jax.numpy.asarray(image)), single)
    assert predict_([]) == []


def test_bytes_and_floats_give_the_same():
    predict_ = predictor()
    np.testing.assert_array_equal(predict_(red()), predict_(red().astype(np.float64)))
    np.testing.assert_array_equal(predict_(red()), predict_(red().astype(np.int32)))
    large = red((40, 90))
    assert np.abs(predict_(large) - predict_(large.astype(np.float32))).max() < 0.05  # bytes are resized to bytes


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4), np.uint8), "expected"),
        (np.zeros((4, 4, 1), np.uint8), r"expected \[H, W, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), "expected"),
        (np.full((4, 4, 3), 256.0), "0 to 255"),
        (np.full((4, 4, 3), -1), "0 to 255"),
        (np.full((4, 4, 3), np.nan), "0 to 255"),
    ],
)
def test_a_predictor_refuses_what_is_no_image(image, message):
    with pytest.raises(ValueError, match=message):
        predictor()(image)


def test_values_up_to_one_are_warned_about():
    with pytest.warns(UserWarning, match=r"0\.\.255"):
        predictor()(np.full((4, 4, 3), 0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor()(np.zeros((4, 4, 3)))


def test_the_batch_size_is_rounded_up_to_the_devices():
    devices = len(jax.local_devices())
    assert predictor(batch_size=1).batch_size == devices
    assert predictor(batch_size=devices + 1).batch_size == 2 * devices


# A run directory with a real network


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "run"
    directory.mkdir()
    config = override(
        Config(),
        {
            "run_dir": str(directory),
            "model.image_height": 16,
            "model.image_width": 16,
            "model.base_filters": 2,
            "model.num_layers": 1,
        },
    )
    (directory / "config.json").write_text(to_json(config), encoding="utf-8")
    manifest = {"format": 1, "dataset": {"kind": "synthetic", "title": "SYNTHETIC", "fingerprint": "0"}}
    manifest["split"] = {"by": "patient", "notes": [], "train": [], "val": [], "test": []}
    (directory / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    shapes = jax.eval_shape(build.model(config).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 16, 16, 3), "uint8"))[
        "params"
    ]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(scale=0.4, size=leaf.shape).astype(np.float32), shapes)
    with Checkpoints(directory / "checkpoints" / "best", keep=1) as best:
        best.save(3, params, {"epoch": 3})
    return directory


def test_load_gives_the_probabilities_of_the_best_checkpoint(run_dir):
    run = build.load_run(run_dir)
    images = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), np.uint8)
    logits = jax.jit(run.model.apply)({"params": run.params}, images)
    np.testing.assert_allclose(predict.load(run_dir)(images), jax.nn.sigmoid(logits), atol=1e-6)


def test_probabilities_do_not_depend_on_batch_size_company_or_devices(run_dir):
    run = build.load_run(run_dir)
    images = np.random.default_rng(2).integers(0, 256, (19, 16, 16, 3), np.uint8)
    predict_ = predict.load(run_dir, batch_size=8)
    together = predict_(images)
    np.testing.assert_array_equal(np.stack([predict_(image) for image in images[:3]]), together[:3])
    np.testing.assert_allclose(predict.load(run_dir, batch_size=16)(images), together, atol=1e-6)
    alone = jax.jit(run.model.apply)({"params": jax.device_get(run.params)}, images[:1])  # one device, batch 1
    np.testing.assert_allclose(jax.nn.sigmoid(alone)[0], together[0], atol=1e-6)


@pytest.mark.parametrize("program", [predict, infer])
def test_the_program_predicts_a_folder(run_dir, tmp_path, capsys, program):
    save(tmp_path / "in" / "a.png", red((20, 30)))
    words = [f"--run_dir={run_dir}", f"--infer.images={tmp_path / 'in'}", f"--infer.output_dir={tmp_path / 'out'}"]
    assert run_program(program.main, words) == 0
    assert pixels(tmp_path / "out" / "a_mask.png").shape == (20, 30)
    assert "Predictions in" in capsys.readouterr().out
    assert run_program(program.main, words) == 2
    assert "exist already" in capsys.readouterr().err


def test_the_program_ends_with_1_where_a_file_failed(run_dir, tmp_path, capsys):
    save(tmp_path / "in" / "a.png", red())
    (tmp_path / "in" / "b.png").write_bytes(b"<!DOCTYPE html>")
    words = [f"--run_dir={run_dir}", f"--infer.images={tmp_path / 'in'}", f"--infer.output_dir={tmp_path / 'out'}"]
    assert run_program(predict.main, words) == 1
    error = capsys.readouterr().err
    assert "1 ok, 1 failed" in error and "b.png" in error
    assert (tmp_path / "out" / "a_mask.png").exists()


def test_the_program_says_which_option_names_the_images(run_dir, capsys):
    assert run_program(predict.main, [f"--run_dir={run_dir}"]) == 2
    assert "--infer.images=FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["none", "empty"])
def test_the_program_ends_with_1_without_images(run_dir, tmp_path, capsys, folder):
    (tmp_path / "empty").mkdir()
    assert run_program(predict.main, [f"--run_dir={run_dir}", f"--infer.images={tmp_path / folder}"]) == 1
    assert str(tmp_path / folder) in capsys.readouterr().err


def test_a_run_without_a_checkpoint_ends_with_4(run_dir, tmp_path, capsys):
    for name in ("config.json", "manifest.json"):
        (tmp_path / name).write_bytes((run_dir / name).read_bytes())
    save(tmp_path / "in" / "a.png", red())
    words = [f"--run_dir={tmp_path}", f"--infer.images={tmp_path / 'in'}"]
    assert run_program(predict.main, words) == 4
    assert "checkpoint" in capsys.readouterr().err


def test_the_weights_of_a_run_are_exported_to_one_new_file(run_dir, tmp_path, capsys):
    path = tmp_path / "new" / "weights.npz"
    assert run_program(export.main, [f"--run_dir={run_dir}", f"--out={path}"]) == 0
    jax.tree.map(np.testing.assert_array_equal, load_weights(path), jax.device_get(build.load_run(run_dir).params))
    network, _ = export.load_network(path)
    assert (network.base_filters, network.num_layers) == (2, 1)
    capsys.readouterr()
    assert run_program(export.main, [f"--run_dir={run_dir}", f"--out={path}"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert run_program(export.main, [f"--run_dir={run_dir}", f"--out={tmp_path / 'w.safetensors'}"]) == 2
    assert "the file is written as npz, name it w.npz" in capsys.readouterr().err
    assert not (tmp_path / "w.safetensors").exists()
