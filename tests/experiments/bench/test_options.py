"""Options: the first word names the command, and all values out of range are reported together."""

import pytest

from experiments.bench.options import LoaderOptions, ScalingOptions, StepOptions, command_of, parse
from experiments.config import ConfigError


def test_without_a_command_the_options_are_those_of_step():
    assert parse([]) == parse(["step"]) == StepOptions()
    assert parse(["--batch=4,8,4", "--only=jaxunet, flax"]) == StepOptions(batch=(4, 8), only=("jaxunet", "flax"))
    options = parse(["loader", "--steps=0"])
    assert (options, command_of(options)) == (LoaderOptions(steps=0), "loader")
    assert parse(["scaling"]) == ScalingOptions(devices=())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--only=jaxunet,torch"], "only=torch: must be among jaxunet, "),
        (["--task=fly"], "task=fly: must be among train, predict"),
        (["--size=250"], "size=250: must be a positive multiple of 64 (2^num_layers)"),
        (["--size=0"], "size=0: must be at least 1"),
        (["--num_layers=17", "--dropout_rate=0"], "num_layers=17: must be from 1 to 16"),
        (["--rounds=0", "--batch=4,0"], "2 problems:\n  batch=0: must be at least 1\n  rounds=0: must be at least 1"),
        (["--batch="], "batch=: must be at least 1"),
        (["--patience=0"], "patience=0.0: must be more than 0 seconds"),
        (["--seconds=nan"], "seconds=nan: must be at least 0 seconds"),
        (["--together", "--no_resident"], "together: needs resident processes"),
        (
            ["loader", "--steps=-1", "--workers=0"],
            "2 problems:\n  workers=0: must be at least 1\n  steps=-1: must be",
        ),
        (["losses", "--size=0", "--batch=0"], "2 problems:\n  size=0: must be at least 1\n  batch=0: must be at least"),
        (["scaling", "--devices=2,0"], "devices=0: must be at least 1"),
        (["trace", "--dropout_rate=0.2"], "dropout_rate=0.2: times num_layers it must be from 0 to below 1"),
        (["trace", "--dropout_rate=nan"], "dropout_rate=nan: times num_layers it must be from 0 to below 1"),
    ],
)
def test_values_out_of_range_are_reported_together(words, expected):
    with pytest.raises(ConfigError) as caught:
        parse(words)
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["stap"], ("stap", "step, loader, losses, scaling, trace")),
        (["loader", "--write_docs"], ("--write_docs",)),
        (["scaling", "--loss=dise"], ("dise", "bce", "hybrid")),
        (["trace", "--dtype=int8"], ("int8", "float32", "bfloat16")),
    ],
)
def test_what_is_not_an_option_ends_the_program_with_the_code_of_usage(words, named, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(words)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert all(word in message for word in named), message
