"""`python -m experiments.bench calls`: what would it save to make several training steps in one call?

The programs make one step a call. While a device works the host prepares the next call, so that only steps shorter
than a call could gain; in one call they are a loop. Both ways are timed in turns, on one state.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from experiments.bench.options import Network, at_least, known_loss, parse
from experiments.bench.workload import Workload

if TYPE_CHECKING:
    from experiments.bench.jax_programs import Compiled


@dataclasses.dataclass(frozen=True)
class Options(Network):
    """Training steps of one call each beside the same steps in one call."""

    batch: int = 4
    """Images a step."""
    loss: str = "bce"
    """bce or hybrid."""
    dtype: str = "float32"
    """Of the computation: float32, bfloat16 or float16."""
    steps: int = 10
    """Steps of a turn, and of the one call."""
    rounds: int = 9
    """Turns of each way."""

    def problems(self) -> list[str]:
        """What is wrong with the values."""
        found = [*super().problems(), *at_least(1, batch=self.batch, steps=self.steps, rounds=self.rounds)]
        if self.dtype not in ("float32", "bfloat16", "float16"):
            found.append(f"dtype={self.dtype}: must be float32, bfloat16 or float16")
        return [*found, *known_loss(self.loss)]


def at_once(compiled: "Compiled", work: Workload, steps: int) -> Callable[[], None]:
    """A function that makes several training steps of the state of `compiled` in one call and waits for them."""
    from functools import partial

    import jax
    from jax import lax

    from jaxunet.compiler import compiler_options
    from jaxunet.losses import LOSSES
    from jaxunet.step import train_step

    one = partial(train_step, loss=LOSSES[work.loss].fn, seed=0)

    @partial(jax.jit, donate_argnums=0, compiler_options=compiler_options(jax.default_backend()))
    def several(state: Any, batch: Any) -> Any:
        return lax.fori_loop(0, steps, lambda _, state: one(state, batch)[0], state)

    def run() -> None:
        compiled.state = jax.block_until_ready(several(compiled.state, *compiled.inputs))

    return run


def measure(options: Options) -> dict[str, Any]:
    """Times both ways in turns, after one turn of each that compiles.

    Returns:
      `{"machine", "arrays": of the state that a call is given, "step_seconds": {way: summary}}`.
    """
    from functools import partial

    import jax

    from experiments import allocator
    from experiments.bench.distance import take_turns
    from experiments.bench.jax_programs import device_names, jaxunet_step
    from experiments.bench.results import summarise

    allocator.keep_freed_memory()
    named = ("loss", "size", "batch", "base_filters", "num_layers", "dropout_rate", "dtype")
    work = Workload(**{name: getattr(options, name) for name in named})
    _, compiled = jaxunet_step(work)
    apart, together = partial(compiled.train, options.steps), at_once(compiled, work, options.steps)
    take_turns(apart, together, 1)
    times = take_turns(apart, together, options.rounds)
    one, several = ([seconds / options.steps for seconds in way] for way in zip(*times, strict=True))
    return {
        "machine": device_names(),
        "arrays": len(jax.tree.leaves(compiled.state)),
        "step_seconds": {"one step a call": summarise(one), f"{options.steps} steps a call": summarise(several)},
    }


def main(argv: Sequence[str]) -> int:
    """Measures, prints a table and writes what was asked for."""
    options = parse(Options, argv, command="calls")
    from experiments import console as report
    from experiments.bench import results

    results.check_new(options.json)
    content = measure(options)
    results.write_json(options.json, "calls", dataclasses.asdict(options), content)
    one, several = (summary["rounds"] for summary in content["step_seconds"].values())
    interval = results.ratio_interval(one, several)
    compared = [
        (f"{results.ratio(one, several):.3f}", "{:.3f} to {:.3f}".format(*interval) if interval else "-"),
        ("1.000", "-"),
    ]
    rows = [
        [way, results.milliseconds(summary["median"]), results.spread(summary), *figures]
        for (way, summary), figures in zip(content["step_seconds"].items(), compared, strict=True)
    ]
    title = (
        f"training step, {options.loss}, batch {options.batch} of {options.size}x{options.size}x3, "
        f"median of {options.rounds} rounds"
    )
    columns = ("", "ms a step", "least to most", "over several a call", "95 % interval")
    report.table(title, columns, rows)
    sys.stdout.write(f"{content['machine']['device']}, {content['arrays']} arrays of state a call\n")
    return 0
