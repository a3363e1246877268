"""`python -m experiments.bench forms`: does the fast network learn what the plain one learns?

The layers of `jaxunet.layers` compute the same numbers as Flax's in another order, and bfloat16 rounds them. Each form
is trained from the same parameters, on the same batches and with the same optimizer; the differences of the final
validation loss are compared with those of other seeds.
"""

import dataclasses
import itertools
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from experiments.bench.options import Names, at_least, check_names, parse
from experiments.config import raise_problems

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from data_pipeline.prepare import Prepared
    from data_pipeline.splits import Split
    from experiments.config import Config

FORMS = ("fast", "plain", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Options:
    """The final validation loss of the fast layers, of Flax's own, and of the fast ones in bfloat16."""

    root: str | None = None
    """The slices, as of --data.root; none: synthetic phantoms."""
    cache_dir: str | None = None
    """Where prepared slices are kept, as of --data.cache_dir."""
    size: int = 128
    """Height and width that slices are brought to, in pixels."""
    base_filters: int = 16
    """Filters of the first level."""
    num_layers: int = 6
    """Number of 2x2 poolings."""
    loss: str = "hybrid"
    """A loss by its name."""
    batch: int = 4
    """Images a step."""
    steps: int = 200
    """Training steps of each run."""
    seeds: int = 6
    """Runs of each form: seeds of the parameters and of the order of the slices."""
    first_seed: int = 0
    """The first of these seeds; the others follow it."""
    forms: Names = FORMS
    """fast, plain, bfloat16."""
    json: str | None = None
    """A new file for all figures."""


def measure(options: Options, ended: Callable[[str, int, float], None]) -> dict[str, Any]:
    """Trains all forms with all seeds.

    Args:
      options: checked.
      ended: called after every run with the form, the seed and the final validation loss.

    Returns:
      `{"machine", "data", "losses": {form: [final validation loss of each seed]}}`.
    """
    import jax

    from experiments import build
    from experiments.bench.jax_programs import device_names
    from experiments.cli import parse as parse_config
    from jaxunet.sharding import make_mesh

    words = {
        "data.root": options.root,
        "data.cache_dir": options.cache_dir,
        "data.resize": True if options.root else None,
        "model.image_height": options.size,
        "model.image_width": options.size,
        "model.base_filters": options.base_filters,
        "model.num_layers": options.num_layers,
        "train.loss": options.loss,
        "train.batch_size": options.batch,
    }
    flags = [f"--{key}={value}" for key, value in words.items() if value is not None]
    config = parse_config(["--config=dice", *flags], program="train")
    data = build.dataset(config)
    split = build.data_split(config, data)
    mesh = make_mesh(jax.devices()[:1])
    losses: dict[str, list[float]] = {}
    for form in options.forms:
        run = program(form, config, data, split, mesh)
        losses[form] = []
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            losses[form].append(run(seed, options.steps))
            ended(form, seed, losses[form][-1])
    return {"machine": device_names(), "data": data.title, "losses": losses}


def program(form: str, config: "Config", data: "Prepared", split: "Split", mesh: "Mesh") -> Callable[[int, int], float]:
    """Compiles a form; the result trains it with a seed for some steps and returns the validation loss."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from data_pipeline.loader import eval_batches, train_batches
    from experiments import build
    from experiments.bench.flax_unet import PlainUNet, to_flax
    from jaxunet.sharding import global_batch, replicate
    from jaxunet.step import compile_eval_step, compile_train_step, init_state

    network, m, size = build.model(config), config.model, config.train.batch_size
    if form == "bfloat16":
        network = network.clone(dtype=jnp.bfloat16)
    plain = PlainUNet(m.base_filters, m.num_layers, m.dropout_rate, jnp.float32)
    optimizer, loss = build.optimizer(config, len(split.train) // size), build.loss(config)
    train_step = compile_train_step(mesh, loss=loss, seed=0)
    eval_step = compile_eval_step(mesh, apply_fn=(plain if form == "plain" else network).apply, loss=loss)

    def run(seed: int, steps: int) -> float:
        state = init_state(network, optimizer, seed=seed, image_shape=build.image_shape(config))
        if form == "plain":
            state = state.replace(params=to_flax(state.params), apply_fn=plain.apply)
        state = replicate(state, mesh)
        batches = train_batches(data, split.train, batch_size=size, seed=seed)
        for batch, _ in zip(batches, range(steps), strict=False):
            state, _ = train_step(state, global_batch(batch, mesh))
        values, rows = [], []
        for batch in eval_batches(data, split.val, batch_size=size):
            rows.append(int(batch["weight"].sum()))
            values.append(float(eval_step(state.params, global_batch(batch, mesh), rows=rows[-1])[0]))
        jax.block_until_ready(state)
        return float(np.average(values, weights=rows))

    return run


def spread(values: Sequence[float]) -> float:
    """The range that three of the values have on average: over all choices of three, or of fewer if there are fewer.

    So what is expected of three seeds does not hang on which three were taken, and more of them estimate it better.
    """
    return statistics.fmean(max(some) - min(some) for some in itertools.combinations(values, min(3, len(values))))


def compare(losses: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A row a form: mean and spread of its seeds, and how far its mean lies from that of the first form.

    A form agrees with the first one where that is less than twice the spread of three seeds of the first one. Welch's
    95 % interval of the difference of the means stands beside it, which says how large a difference may be hidden.
    """
    from scipy.stats import ttest_ind

    first = next(iter(losses.values()))
    limit = 2 * spread(first)
    rows = []
    for form, values in losses.items():
        mean = statistics.fmean(values)
        away = abs(mean - statistics.fmean(first))
        interval = ttest_ind(values, first, equal_var=False).confidence_interval(0.95)
        row = {"form": form, "mean": mean, "spread": spread(values), "away": away, "limit": limit}
        rows.append(row | {"interval": [float(bound) for bound in interval], "agrees": away < limit})
    return rows


def main(argv: Sequence[str]) -> int:
    """Trains, prints a table and writes what was asked for."""
    options = parse(Options, argv, command="forms")
    from experiments import console as report
    from experiments.bench import results

    problems = at_least(1, batch=options.batch, steps=options.steps, size=options.size)
    problems += at_least(2, seeds=options.seeds) + at_least(0, first_seed=options.first_seed)
    raise_problems([*problems, *check_names("forms", options.forms, FORMS)])
    results.check_new(options.json)
    with report.progress("training", len(options.forms) * options.seeds) as advance:

        def ended(form: str, seed: int, loss: float) -> None:
            print(f"{form}, seed {seed}: {loss:.4f}", flush=True)  # now, as all runs together take long
            advance()

        content = measure(options, ended)
    content["rows"] = compare(content["losses"])
    results.write_json(options.json, "forms", dataclasses.asdict(options), content)
    title = (
        f"validation loss ({options.loss}) after {options.steps} steps of {options.batch} images "
        f"of {options.size}x{options.size}, {options.seeds} seeds from {options.first_seed}"
    )
    rows = [
        [
            row["form"],
            " ".join(f"{value:.4f}" for value in content["losses"][row["form"]]),
            f"{row['mean']:.4f}",
            f"{row['spread']:.4f}",
            f"{row['away']:.4f}",
            "{:+.4f} to {:+.4f}".format(*row["interval"]) if number else "-",
        ]
        for number, row in enumerate(content["rows"])
    ]
    columns = ("form", "each seed", "mean", "spread", "from the first", "95 % interval")
    report.table(title, columns, rows)
    sys.stdout.write(f"data: {content['data']}\n")
    for row in content["rows"][1:]:
        word = "less" if row["agrees"] else "NOT less"
        twice = f"twice the spread of three seeds, {row['limit']:.4f}"
        sys.stdout.write(f"{row['form']}: {row['away']:.4f} away, {word} than {twice}\n")
    return 0
