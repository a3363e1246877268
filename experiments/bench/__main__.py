"""`python -m experiments.bench [COMMAND] [OPTIONS]`: what the network costs. Without a command: `step`.

Commands: step, losses, loader, distance, start, calls, scaling, plan, steady, trace, forms. `--help` after a command
lists its options.
"""

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "step": "a training step and inference, beside Flax, Keras, PyTorch and MONAI",
    "losses": "every loss with its gradient",
    "loader": "slices a second by stage and by cache, beside a torch DataLoader",
    "distance": "the distance transform beside SciPy's",
    "start": "import, compilation and first step, with a cold and a warm compilation cache",
    "calls": "one training step a call beside several in one call",
    "scaling": "one to N devices: time of a step, bytes exchanged, what overlaps",
    "plan": "what the compiler plans for one to N devices, which need not be here: memory, work, exchanges",
    "steady": "thousands of steps: whether time and memory stay level",
    "trace": "where the time of a step goes, operation by operation",
    "forms": "whether the fast layers, the plain ones and bfloat16 learn the same",
}
"""Each is a module of this package with a function `main(argv)`."""


def main(argv: Sequence[str]) -> int:
    """Runs the command that the first word names."""
    words = list(argv)
    if words and not words[0].startswith("-"):
        command = words.pop(0)
    else:
        command = "step"
        if "-h" in words or "--help" in words:
            listed = "\n".join(f"  {name:8} {text}" for name, text in COMMANDS.items())
            sys.stdout.write(
                f"python -m experiments.bench COMMAND [OPTIONS]\n\n{listed}\n\nWithout a command: step.\n\n"
            )
    if command not in COMMANDS:
        from experiments.config import ConfigError
        from experiments.fields import suggest

        known = ", ".join(COMMANDS)
        raise ConfigError(f"unknown command {command!r}{suggest(command, COMMANDS)}\nknown are {known}")
    return importlib.import_module(f"experiments.bench.{command}").main(words)


if __name__ == "__main__":
    from experiments.cli import run_program

    sys.exit(run_program(main))
