import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from experiments import build, export, summary
from experiments.cli import run_program
from experiments.config import PRESETS, Config, ConfigError, ModelConfig, override
from experiments.summary import layer_table
from jaxunet.checkpoint import CheckpointError

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


def test_the_table_is_the_documented_one():
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    layers = layer_table(ModelConfig())
    assert len(layers) == len(golden) == 60
    for layer, row in zip(layers, golden, strict=True):
        assert layer.name == row["name"]
        assert [None, *layer.shape] == row["output_shape"]
        assert layer.parameters == row["params"]
        assert list(layer.inputs) == row["connected_to"]
        assert layer.kind.startswith(KERAS[row["type"]])


def test_the_documented_network_has_31_110_001_parameters():
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
    ours = 2 * sum(layer.multiply_adds for layer in layer_table(model))
    assert ours == pytest.approx(counted, rel=0.1)  # the compiler leaves out taps that fall off the edge, adds ReLUs


def test_the_printed_table_names_every_layer_and_the_total():
    out = io.StringIO()
    summary.print_summary(PRESETS["dice"], Console(file=out, width=120))
    text = out.getvalue()
    for layer in layer_table(PRESETS["dice"].model):
        assert layer.name in text
    assert "9 438 208" in text
    assert "60 layers, 31 110 001 parameters" in text
    assert "decoder5_up, encoder5_conv2" in text


@pytest.mark.parametrize("layers", [1, 2, 6, 9])
def test_the_drawing_has_room_for_any_depth(tmp_path, layers):
    model = ModelConfig(image_height=512, image_width=1024, num_layers=layers, dropout_rate=0.01)
    summary.draw(model, tmp_path / "net.png", title="t")
    picture = np.asarray(Image.open(tmp_path / "net.png").convert("RGB"))
    edges = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert (edges == 255).all()  # nothing is cut off
    for colour in (summary.POOLING, summary.UP, summary.CONVOLUTION):
        rgb = tuple(int(colour[k : k + 2], 16) for k in (1, 3, 5))
        assert (picture == rgb).all(-1).any()


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
def test_out_without_a_file_is_refused(words):
    with pytest.raises(ConfigError, match="--out needs a value"):
        export.take_out(words)


def test_out_is_taken_from_anywhere_between_the_words():
    assert export.take_out(["--config=dice", "--out=a.png", "--x=1"]) == (["--config=dice", "--x=1"], "a.png")
    assert export.take_out(["--out", "a.png", "--x=1"]) == (["--x=1"], "a.png")
    assert export.take_out(["--x=1"]) == (["--x=1"], None)


def small_network():
    config = override(Config(), {"model.base_filters": 2, "model.num_layers": 2, "model.num_classes": 3})
    network, rng = build.model(config), np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 16, 16, 3), "uint8"))["params"]
    return network, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def test_exported_weights_give_the_network_back(tmp_path):
    from jaxunet.checkpoint import save_weights

    network, params = small_network()
    save_weights(tmp_path / "weights.npz", params)
    again, loaded = export.load_network(tmp_path / "weights.npz")
    assert (
        (again.base_filters, again.num_layers, again.num_classes)
        == (2, 2, 3)
        == (
            network.base_filters,
            network.num_layers,
            network.num_classes,
        )
    )
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize("damage", ["missing", "foreign", "layer", "shape"])
def test_weights_that_do_not_fit_are_named(tmp_path, damage):
    from jaxunet.checkpoint import save_weights

    _, params = small_network()
    path = tmp_path / "weights.npz"
    if damage == "foreign":
        params = {"a": np.zeros(3, np.float32)}
    elif damage == "layer":
        del params["decoder0_conv2"]
    elif damage == "shape":
        params["encoder2_conv1"]["kernel"] = np.zeros((3, 3, 4, 9), np.float32)
    if damage != "missing":
        save_weights(path, params)
    with pytest.raises(CheckpointError, match=r"weights\.npz"):
        export.load_network(path)
