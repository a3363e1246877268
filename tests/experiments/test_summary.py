"""The layer table is that of the reference and of the network that is trained."""

import contextlib
import io
import json
from pathlib import Path

import jax
import pytest
from rich.console import Console

from data_pipeline.console import run_program
from experiments import build, summary
from experiments.config import PRESETS, Config, ModelConfig, override
from experiments.summary import layer_table

GOLDEN = Path(__file__).parents[1] / "goldens" / "summary.json"


KERAS = {
    "InputLayer": "input, 0 to 255",
    "Rescaling": "divide by 255",
    "Conv2D": "convolution",
    "Dropout": "dropout",
    "MaxPooling2D": "max-pooling 2x2",
    "Conv2DTranspose": "up-convolution 2x2",
    "Concatenate": "concatenation",
}


def real_parameters(model):
    """Parameters by layer of the network that is trained, counted without computing them."""
    config = override(Config(), {f"model.{name}": value for name, value in vars(model).items()})
    images = jax.ShapeDtypeStruct((1, *build.image_shape(config)), "uint8")
    params = jax.eval_shape(build.model(config).init, jax.random.key(0), images)["params"]
    return {name: sum(leaf.size for leaf in jax.tree.leaves(layer)) for name, layer in params.items()}


def test_the_table_is_that_of_the_reference():
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    layers = layer_table(ModelConfig())
    assert len(layers) == len(golden) == 60
    for layer, row in zip(layers, golden, strict=True):
        assert layer.name == row["name"]
        assert [None, *layer.shape] == row["output_shape"]
        assert layer.parameters == row["params"]
        assert list(layer.inputs) == row["connected_to"]
        assert layer.kind.startswith(KERAS[row["type"]])


def test_the_network_of_the_reference_has_31_110_001_parameters():
    assert sum(layer.parameters for layer in layer_table(ModelConfig())) == 31_110_001
    assert sum(layer.parameters for layer in layer_table(ModelConfig(num_layers=5))) == 7_775_601


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(),
        PRESETS["demo"].model,
        ModelConfig(image_height=32, image_width=64, image_channels=1, num_classes=4, base_filters=3, num_layers=2),
        ModelConfig(image_height=2, image_width=2, num_layers=1, dropout_rate=0.0, dtype="bfloat16"),
    ],
)
def test_parameters_are_those_of_the_network_that_is_trained(model):
    layers = layer_table(model)
    assert {layer.name: layer.parameters for layer in layers if layer.parameters} == real_parameters(model)
    assert len(layers) == 9 * model.num_layers + 6


def test_every_layer_is_connected_to_layers_before_it():
    names = []
    for layer in layer_table(ModelConfig(num_layers=3)):
        assert set(layer.inputs) <= set(names)
        assert bool(layer.inputs) == (layer.name != "input")
        names.append(layer.name)
    assert len(set(names)) == len(names)


def test_multiply_adds_are_those_that_the_compiler_counts():
    model = ModelConfig(image_height=32, image_width=32, base_filters=4, num_layers=2)
    config = override(Config(), {f"model.{name}": value for name, value in vars(model).items()})
    network = build.model(config)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    params = jax.eval_shape(network.init, jax.random.key(0), images)
    counted = jax.jit(network.apply).lower(params, images).cost_analysis()["flops"]
    listed = 2 * sum(layer.multiply_adds for layer in layer_table(model))
    assert listed == pytest.approx(counted, rel=0.1)  # the compiler leaves out taps that fall off the edge, adds ReLUs


def test_the_printed_table_names_every_layer_and_the_total():
    out = io.StringIO()
    summary.print_summary(PRESETS["dice"], Console(file=out, width=120))
    text = out.getvalue()
    for layer in layer_table(PRESETS["dice"].model):
        assert layer.name in text
    assert "9 438 208" in text
    assert "60 layers, 31 110 001 parameters" in text
    assert "decoder5_up, encoder5_conv2" in text


def test_a_narrow_console_shows_all_but_the_connections():
    out = io.StringIO()
    summary.print_summary(PRESETS["dice"], Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("encoder5_conv2" in line for line in lines) == 1
    assert "connected to" not in out.getvalue()


def test_the_program_draws_where_out_says_and_never_over_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--config=dice", "--model.num_layers=2", "--out", "net.png"]
    assert run_program(summary.main, words) == 0
    assert "24 layers" in capsys.readouterr().out
    (tmp_path / "net.png").write_bytes(b"mine")
    assert run_program(summary.main, words) == 2
    assert "net.png exists already" in capsys.readouterr().err
    assert (tmp_path / "net.png").read_bytes() == b"mine"
    assert run_program(summary.main, [*words[:-1], "net.pdf"]) == 2
    assert "written as png, name it net.png" in capsys.readouterr().err


def test_the_program_does_not_create_the_run_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_program(summary.main, ["--config=demo"]) == 0
    (drawing,) = (tmp_path / "runs").iterdir()  # a directory would be refused by the training that follows
    assert drawing.is_file() and drawing.name.endswith("-network.png")
    assert str(drawing.relative_to(tmp_path)) in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--out"], ["--out="], ["--out", "--config=dice"]])
def test_out_without_a_file_is_refused(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(SystemExit):  # of tyro, for a value that is missing
        assert run_program(summary.main, words) == 2
    assert list(tmp_path.iterdir()) == []


def test_out_may_be_anywhere_between_the_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--config=dice", "--model.num_layers=1"]
    for k, words in enumerate(
        (["--out=0.png", *small], [*small, "--out", "1.png"], [small[0], "--out=2.png", small[1]])
    ):
        assert run_program(summary.main, words) == 0
        assert (tmp_path / f"{k}.png").exists()
