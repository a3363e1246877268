"""The program of the data side: its commands, their help, and how fast it comes."""

import subprocess
import sys

import pytest

from data_pipeline.__main__ import Check, Prepare, Split, main, parse


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("prepare", ("--root", "--size", "--resize", "--cache_dir", "--phantom_patients", "--phantom_seed")),
        ("check", ("--root", "--channels", "--mask_threshold", "--phantom_patients", "--phantom_seed")),
        ("split", ("ROOT", "OUT", "--by", "--seed", "mini_test", "--synthetic", "--phantom_patients", "--channels")),
    ],
)
def test_each_command_explains_itself_without_the_slow_imports(command, words):
    code = (
        "import sys\nfrom data_pipeline.__main__ import main\n"
        f"try: main([{command!r}, '--help'])\nexcept SystemExit as e: assert e.code == 0\n"
        "slow = {'jax', 'flax', 'matplotlib', 'tensorflow_datasets', 'grain', 'orbax', 'array_record', 'PIL'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert all(word in done.stdout for word in words)


def test_the_commands_have_the_options_of_a_source_in_common():
    given = ["--channels=1", "--mask_threshold=3", "--phantom_patients=9", "--phantom_seed=2"]
    for command, kind, words in (
        ("prepare", Prepare, ["--root=data"]),
        ("check", Check, ["--root=data"]),
        ("split", Split, ["data", "out"]),
    ):
        options = parse([command, *words, *given])
        assert type(options) is kind
        assert (options.root, options.channels, options.mask_threshold) == ("data", 1, 3)
        assert (options.phantom_patients, options.phantom_seed) == (9, 2)


@pytest.mark.parametrize("words", [[], ["prepair"], ["check", "--size=3"], ["prepare", "--channels=2"], ["split"]])
def test_a_command_line_that_is_wrong_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert capsys.readouterr().err
