"""`python -m experiments.bench loader --root=kaggle_3m`: how many slices a second reach the step, stage by stage.

Stages are measured one by one in one thread, on decoded or read slices that are at hand; the caches as a training run
uses them, in its random order, up to the host and up to the device. PyTorch's DataLoader, in a process of its own,
reads the image files with two workers, as people do. They take turns in rounds, all files in the page cache.
"""

import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from experiments.bench.options import Network, at_least, parse

if TYPE_CHECKING:
    from data_pipeline.prepare import Prepared
    from data_pipeline.source import Source

CACHES = ("none", "memory", "device")
TORCH = "experiments.bench.torch_loader:program"


@dataclasses.dataclass(frozen=True)
class Options(Network):
    """Slices a second: read, decoded, shuffled, batched, on the device; by cache; beside a torch DataLoader."""

    root: str | None = None
    """The kaggle_3m folder, whose TIFF files the DataLoader reads. None: synthetic slices, without a DataLoader."""
    cache_dir: str | None = None
    """Where the prepared slices are. None: $XDG_CACHE_HOME/jaxunet."""
    batch: int = 4
    """Slices a batch."""
    threads: int = 2
    """Threads of the loader."""
    workers: int = 2
    """Processes of the DataLoader."""
    rounds: int = 5
    """Turns of each."""
    seconds: float = 1.0
    """Least duration of a turn."""
    steps: int = 3
    """Training steps a round, on one resident batch and with each cache; 0 leaves them out."""

    def problems(self) -> list[str]:
        """What is wrong with the values."""
        counts = {"batch": self.batch, "threads": self.threads, "workers": self.workers, "rounds": self.rounds}
        return [*super().problems(), *at_least(1, **counts), *at_least(0, steps=self.steps)]


Turn = Callable[[], float]
"""Works for a while; returns slices a second."""


def turn(work: Callable[[], int], seconds: float) -> Turn:
    """Repeats `work`, which returns how many slices it has done."""

    def run() -> float:
        count, start = work(), time.perf_counter()
        count = 0  # the first call may find things cold
        while (elapsed := time.perf_counter() - start) < seconds:
            count += work()
        return count / elapsed

    return run


def stages(data: "Prepared", options: Options) -> dict[str, Turn]:
    """Each stage alone, in this thread."""
    import jax

    from data_pipeline.loader import epoch_order, stack
    from experiments.feed import Kept
    from jaxunet.sharding import make_mesh

    size = options.batch
    order = itertools.cycle(epoch_order(len(data), seed=0, epoch=0).tolist())
    records = itertools.cycle([data.record(next(order)) for _ in range(min(256, len(data)))])
    slices = itertools.cycle([data[next(order)] for _ in range(min(256, len(data)))])
    batch = stack([next(slices) for _ in range(size)])
    kept = Kept(data, [0], cache="none", threads=0, mesh=make_mesh(jax.devices()[:1]))
    epochs = itertools.count()

    def done(_: Any, count: int = 1) -> int:
        return count

    works: dict[str, Callable[[], int]] = {
        "read": lambda: done(data.record(next(order))),
        "decode": lambda: done(data.decode(next(records))),
        "shuffle": lambda: done(epoch_order(len(data), seed=0, epoch=next(epochs)), len(data)),
        "batch": lambda: done(stack([next(slices) for _ in range(size)]), size),
        "to device": lambda: done(jax.block_until_ready(kept.put(batch | {"weight": batch["patient"]})), size),
    }
    return {name: turn(work, options.seconds) for name, work in works.items()}


def caches(data: "Prepared", options: Options) -> tuple[dict[str, Turn], list[Iterator[Any]]]:
    """The batches of a training run, on the host and on the device; and the iterators, to be closed."""
    import jax

    from data_pipeline.loader import train_batches
    from experiments.feed import Kept
    from jaxunet.sharding import make_mesh

    mesh, turns, opened = make_mesh(jax.devices()[:1]), {}, []
    for cache in CACHES:
        kept = Kept(data, range(len(data)), cache=cache, threads=options.threads, mesh=mesh)
        if cache == "memory":
            kept.source.fill(options.threads)  # type: ignore[union-attr]  # what the first epoch does
        order = {"batch_size": options.batch, "seed": 0, "threads": options.threads}
        for place in ("host", "device"):
            batches = train_batches(kept.source, range(len(data)), **order)

            def work(batches: Iterator[Any] = batches, kept: Kept = kept, place: str = place) -> int:
                batch = next(batches)
                if place == "device":
                    jax.block_until_ready(kept.put(batch))
                return options.batch

            opened.append(batches)
            turns[f"{cache}, {place}"] = turn(work, options.seconds)
    return turns, opened


def steps(data: "Prepared", options: Options) -> dict[str, Callable[[], float]]:
    """A training step, with one batch that lies on the device and with each cache: its seconds; hybrid loss.

    All train the same state in turns, and those whose batches have one form run the same program: what lies elsewhere
    in memory can take another time.
    """
    import jax
    import optax

    from data_pipeline.loader import train_batches
    from experiments.bench.workload import ADAM, LEARNING_RATE
    from experiments.feed import Feed, Kept
    from jaxunet import UNet, init_state
    from jaxunet.losses import LOSSES
    from jaxunet.sharding import batch_sharding, make_mesh, replicate
    from jaxunet.step import compile_train_step

    mesh = make_mesh(jax.devices()[:1])
    model = UNet(base_filters=options.base_filters, num_layers=options.num_layers, dropout_rate=options.dropout_rate)
    fresh = init_state(model, optax.adam(LEARNING_RATE, **ADAM), seed=0, image_shape=data.shape)
    held = [replicate(fresh, mesh)]
    compiled: dict[Any, Any] = {}
    found: dict[str, Callable[[], float]] = {}
    for name in ("resident", *CACHES):
        cache = "none" if name == "resident" else name
        kept = Kept(data, range(len(data)), cache=cache, threads=options.threads, mesh=mesh)
        batches = train_batches(
            kept.source, range(len(data)), batch_size=options.batch, seed=0, threads=options.threads
        )
        first = next(batches), kept.put(next(batches))
        feed = itertools.repeat(first) if name == "resident" else Feed(batches, kept.put)
        places = batch_sharding(first[1], mesh)
        if (form := jax.tree.structure(places)) not in compiled:
            compiled[form] = compile_train_step(mesh, loss=LOSSES["hybrid"].fn, seed=0, batch_sharding=places)

        def run(step: Any = compiled[form], feed: Any = feed) -> float:
            start = time.perf_counter()
            _, inputs = next(feed)
            held[0], metrics = step(held[0], inputs)
            if isinstance(feed, Feed):
                feed.ahead(metrics["loss"])
            jax.block_until_ready(held[0].params)
            return time.perf_counter() - start

        run()  # compiles
        found[name] = run
    return found


def torch_turn(source: "Source", options: Options) -> tuple[Turn | None, Any, str]:
    """The DataLoader in a process of its own: its turn, the process to be closed, and why there is none."""
    import importlib.util

    from data_pipeline.kaggle import PairSource
    from experiments.bench.workers import Worker

    if importlib.util.find_spec("torch") is None:
        return None, None, "torch is not installed (extra bench)"
    if not isinstance(source, PairSource):
        return None, None, "no --root: synthetic slices have no files"
    files = [[image.path(name) for image, name in pair] for pair in source.pairs]
    arguments = {"files": files, "batch": options.batch, "workers": options.workers}
    worker = Worker("PyTorch", TORCH, arguments)
    return (lambda: worker.call("slices_per_second", seconds=options.seconds)), worker, ""


def measure(options: Options) -> dict[str, Any]:
    """Measures everything, in rounds.

    Returns:
      `{"data", "slices", "rates": {name: summary of slices a second}, "step_seconds": {name: summary}, "absent"}`.
    """
    from data_pipeline import open_source
    from data_pipeline.prepare import prepare
    from experiments.bench.results import summarise
    from experiments.bench.rounds import rotated

    size = options.size, options.size
    source = open_source(options.root, size=size, resize=None if options.root is None else False)
    data = prepare(source, options.cache_dir, datasets=[options.root] if options.root else [])
    turns = {f"stage: {name}": work for name, work in stages(data, options).items()}
    ours, opened = caches(data, options)
    turns |= {f"cache {name}": work for name, work in ours.items()}
    loader, worker, absent = torch_turn(source, options)
    if loader:
        turns[f"torch DataLoader, {options.workers} workers, TIFF"] = loader
    try:
        rates: dict[str, list[float]] = {name: [] for name in turns}
        for number in range(options.rounds + 1):  # the first warms caches up
            for name, work in turns.items():
                found = work()
                if number:
                    rates[name].append(found)
    finally:
        for batches in opened:
            batches.close()  # type: ignore[attr-defined]
        if worker:
            worker.close()
    seconds: dict[str, list[float]] = {}
    if options.steps:
        runs = steps(data, options)
        for number in range(options.rounds * options.steps):  # one by one, as the machine's speed varies
            for name in rotated(list(runs), number):
                seconds.setdefault(name, []).append(runs[name]())
    return {
        "data": data.title,
        "slices": len(data),
        "rates": {name: summarise(found) for name, found in rates.items()},
        "step_seconds": {name: summarise(found) for name, found in seconds.items()},
        "absent": absent,
    }


def main(argv: Sequence[str]) -> int:
    """Measures, prints the tables and writes what was asked for."""
    options = parse(Options, argv, command="loader")
    from experiments import console as report
    from experiments.bench import results

    results.check_new(options.json)
    content = measure(options)
    results.write_json(options.json, "loader", dataclasses.asdict(options), content)
    rates = content["rates"]
    peer = next((found["median"] for name, found in rates.items() if name.startswith("torch")), None)
    rows = [
        [name, *(f"{value:,.0f}" for value in (found["median"], *found["range"])), _ratio(name, found["median"], peer)]
        for name, found in rates.items()
    ]
    columns = ("", "slices/s", "least", "most", "x torch")
    report.table(f"{content['data']}: {content['slices']} slices, batches of {options.batch}", columns, rows)
    if content["absent"]:
        sys.stdout.write(f"no DataLoader: {content['absent']}\n")
    if found := content["step_seconds"]:
        base = found["resident"]["rounds"]
        more = {name: results.ratio(one["rounds"], base) - 1 for name, one in found.items()}
        fed = [
            [name, f"{one['median']:.4f}", f"{more[name]:+.1%}", _interval(one["rounds"], base)]
            for name, one in found.items()
        ]
        heads = ("", "seconds", "over one resident batch", "95 % interval")
        report.table("a training step, by what feeds it", heads, fed)
    return 0


def _interval(seconds: Sequence[float], base: Sequence[float]) -> str:
    from experiments.bench.results import ratio_interval

    limits = ratio_interval(seconds, base)
    return " to ".join(f"{limit - 1:+.1%}" for limit in limits) if limits and seconds is not base else "-"


def _ratio(name: str, value: float, peer: float | None) -> str:
    """A stage alone is not what a DataLoader does."""
    return "-" if peer is None or name.startswith("stage") else f"{value / peer:.2f}"
