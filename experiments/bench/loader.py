"""`python -m experiments.bench loader --root=kaggle_3m`: how many slices per second reach the step, stage by stage.

Each stage is measured alone in one thread, on slices that have been read or decoded before. Each cache is measured as
a training run uses it, in its random order, up to the host and up to the device. PyTorch's DataLoader, in its own
process, reads the image files with two workers, as is usual. All take turns, with all files in the page cache.
"""

import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import optax

from data_pipeline import SourceOptions, open_source
from data_pipeline.loader import epoch_order, stack, train_batches
from data_pipeline.prepare import prepare
from data_pipeline.prepared import Prepared
from data_pipeline.source import Source
from data_pipeline.sources.pairs import PairSource
from experiments import console
from experiments.bench import results
from experiments.bench.options import LoaderOptions
from experiments.bench.peers import PEER_MODULES, missing
from experiments.bench.rounds import rotated
from experiments.bench.worker import Worker
from experiments.bench.workload import ADAM, LEARNING_RATE
from experiments.prefetch import Prefetcher, SliceStore
from jaxunet import UNet, init_state
from jaxunet.losses import LOSSES
from jaxunet.sharding import batch_sharding, make_mesh, replicate
from jaxunet.step import compile_train_step

CACHES = ("none", "memory", "device")

Turn = Callable[[], float]
"""Works for a while; returns slices per second."""


def main(options: LoaderOptions) -> int:
    """Measures, prints the tables and writes the files that were asked for."""
    results.check_new(options.json)
    content = measure(options)
    results.write_json(options.json, "loader", dataclasses.asdict(options), content)
    show(content, options)
    return 0


def measure(options: LoaderOptions) -> dict[str, Any]:
    """Measures everything, in rounds.

    Returns:
      `{"data", "slices", "rates": {name: summary of slices per second}, "step_seconds": {name: summary}, "absent"}`.
    """
    size = options.size, options.size
    source = open_source(options.root, SourceOptions(size=size, resize=None if options.root is None else False))
    data = prepare(source, options.cache_dir, datasets=[options.root] if options.root else [])
    turns = {f"stage: {name}": work for name, work in stages(data, options).items()}
    cached, opened = caches(data, options)
    turns |= {f"cache {name}": work for name, work in cached.items()}
    loader, worker, absent = torch_turn(source, options)
    if loader:
        turns[f"torch DataLoader, {options.workers} workers, TIFF"] = loader
    try:
        rates: dict[str, list[float]] = {name: [] for name in turns}
        for number in range(options.rounds + 1):
            for name, work in turns.items():
                found = work()
                if number:  # the first round warms caches up
                    rates[name].append(found)
    finally:
        for batches in opened:
            batches.close()  # type: ignore[attr-defined]
        if worker:
            worker.close()
    seconds: dict[str, list[float]] = {}
    if options.steps:
        runs = steps(data, options)
        for number in range(options.rounds * options.steps):  # one step per turn, as the machine's speed varies
            for name in rotated(list(runs), number):
                seconds.setdefault(name, []).append(runs[name]())
    return {
        "data": data.title,
        "slices": len(data),
        "rates": {name: results.summarise(found) for name, found in rates.items()},
        "step_seconds": {name: results.summarise(found) for name, found in seconds.items()},
        "absent": absent,
    }


def turn(work: Callable[[], int], seconds: float) -> Turn:
    """Repeats `work`, which returns the number of slices it has handled."""

    def run() -> float:
        work()  # the first call may find things cold
        count, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            count += work()
        return count / elapsed

    return run


def stages(data: Prepared, options: LoaderOptions) -> dict[str, Turn]:
    """Each stage alone, in this thread."""
    size = options.batch
    order = itertools.cycle(epoch_order(len(data), seed=0, epoch=0).tolist())
    records = itertools.cycle([data.record(next(order)) for _ in range(min(256, len(data)))])
    slices = itertools.cycle([data[next(order)] for _ in range(min(256, len(data)))])
    batch = stack([next(slices) for _ in range(size)])
    kept = SliceStore(data, [0], cache="none", threads=0, mesh=make_mesh(jax.devices()[:1]))
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


def caches(data: Prepared, options: LoaderOptions) -> tuple[dict[str, Turn], list[Iterator[Any]]]:
    """The batches of a training run, on the host and on the device; and the iterators, which must be closed."""
    mesh, turns, opened = make_mesh(jax.devices()[:1]), {}, []
    for cache in CACHES:
        kept = SliceStore(data, range(len(data)), cache=cache, threads=options.threads, mesh=mesh)
        if cache == "memory":
            kept.source.fill(options.threads)  # type: ignore[union-attr]  # as the first epoch does
        order = {"batch_size": options.batch, "seed": 0, "threads": options.threads}
        for place in ("host", "device"):
            batches = train_batches(kept.source, range(len(data)), **order)

            def work(batches: Iterator[Any] = batches, kept: SliceStore = kept, place: str = place) -> int:
                batch = next(batches)
                if place == "device":
                    jax.block_until_ready(kept.put(batch))
                return options.batch

            opened.append(batches)
            turns[f"{cache}, {place}"] = turn(work, options.seconds)
    return turns, opened


def steps(data: Prepared, options: LoaderOptions) -> dict[str, Callable[[], float]]:
    """Training steps of the hybrid loss, on one batch that stays on the device and with each cache; return seconds.

    All train the same state in turns, and those whose batches have the same structure run the same program: data at
    another place in memory can change the time.
    """
    mesh = make_mesh(jax.devices()[:1])
    model = UNet(base_filters=options.base_filters, num_layers=options.num_layers, dropout_rate=options.dropout_rate)
    fresh = init_state(model, optax.adam(LEARNING_RATE, **ADAM), seed=0, image_shape=data.shape)
    held = [replicate(fresh, mesh)]
    compiled: dict[Any, Any] = {}
    found: dict[str, Callable[[], float]] = {}
    for name in ("resident", *CACHES):
        cache = "none" if name == "resident" else name
        kept = SliceStore(data, range(len(data)), cache=cache, threads=options.threads, mesh=mesh)
        batches = train_batches(
            kept.source, range(len(data)), batch_size=options.batch, seed=0, threads=options.threads
        )
        first = next(batches), kept.put(next(batches))
        feed = itertools.repeat(first) if name == "resident" else Prefetcher(batches, kept.put)
        places = batch_sharding(first[1], mesh)
        if (form := jax.tree.structure(places)) not in compiled:
            compiled[form] = compile_train_step(mesh, loss=LOSSES["hybrid"].fn, seed=0, batch_sharding=places)

        def run(step: Any = compiled[form], feed: Any = feed) -> float:
            start = time.perf_counter()
            _, inputs = next(feed)
            held[0], metrics = step(held[0], inputs)
            if isinstance(feed, Prefetcher):
                feed.prefetch(metrics["loss"])
            jax.block_until_ready(held[0].params)
            return time.perf_counter() - start

        run()  # compiles
        found[name] = run
    return found


def torch_turn(source: Source, options: LoaderOptions) -> tuple[Turn | None, Worker | None, str]:
    """The DataLoader in its own process: its turn, the process (to be closed), or the reason why there is none."""
    if missing(("torch",)):
        return None, None, "torch is not installed (extra bench)"
    if not isinstance(source, PairSource):  # the DataLoader reads files
        return None, None, "no --root: synthetic slices have no files"
    files = [[image.path(name) for image, name in pair] for pair in source.pairs]
    arguments = {"files": files, "batch": options.batch, "workers": options.workers}
    worker = Worker("PyTorch", f"{PEER_MODULES}.torch:serve_loader", arguments)
    return (lambda: worker.call("slices_per_second", seconds=options.seconds)), worker, ""


def show(content: dict[str, Any], options: LoaderOptions) -> None:
    """Prints a table of the rates and one of the steps."""
    rates = content["rates"]
    peer = next((found["median"] for name, found in rates.items() if name.startswith("torch")), None)
    rows = []
    for name, found in rates.items():
        # A stage alone is not what a DataLoader does.
        ratio = "-" if peer is None or name.startswith("stage") else f"{found['median'] / peer:.2f}"
        rows.append([name, *(f"{value:,.0f}" for value in (found["median"], *found["range"])), ratio])
    title = f"{content['data']}: {content['slices']} slices, batches of {options.batch}"
    console.table(title, ("", "slices/s", "least", "most", "x torch"), rows)
    if content["absent"]:
        sys.stdout.write(f"no DataLoader: {content['absent']}\n")
    if found := content["step_seconds"]:
        base = found["resident"]["rounds"]
        rows = [
            [
                name,
                f"{one['median']:.4f}",
                f"{results.ratio(one['rounds'], base) - 1:+.1%}",
                interval(one["rounds"], base),
            ]
            for name, one in found.items()
        ]
        heads = ("", "seconds", "over one resident batch", "95 % interval")
        console.table("a training step, by the source of its batches", heads, rows)


def interval(seconds: Sequence[float], base: Sequence[float]) -> str:
    """The interval of the ratio as percentages above one."""
    limits = results.ratio_interval(seconds, base)
    return " to ".join(f"{limit - 1:+.1%}" for limit in limits) if limits and seconds is not base else "-"
