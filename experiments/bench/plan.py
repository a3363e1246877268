"""`python -m experiments.bench plan`: what the compiler makes of a step, also for devices that are not here.

Nothing is run, so the figures are those of the program: memory, work, traffic, and what the devices exchange while they
compute. XLA compiles for TPUs with the extra `tpu` alone, and for NVIDIA GPUs with the extra `cuda13` and a description
of the GPU.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from experiments.bench.options import Network, Numbers, at_least, known_loss, parse
from experiments.bench.workers import Worker, with_simulated_devices
from experiments.bench.workload import Workload

NODE = 8
"""GPUs of one host."""


@dataclasses.dataclass(frozen=True)
class Options(Network):
    """Memory, work and exchanges of a step as the compiler plans them, for devices that need not be here."""

    target: str = ""
    """A TPU topology such as v5e:2x2, or the file that describes a GPU to XLA (in XLA's repository:
    xla/backends/gpu/target_config/specs, such as h200.txtpb); none: the devices of this machine."""
    devices: Numbers = (1,)
    """Numbers of devices."""
    batch: Numbers = (4,)
    """Images a step and device."""
    task: Literal["train", "predict"] = "train"
    """A training step or inference."""
    loss: str = "hybrid"
    """bce or hybrid."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the computation."""
    remat: bool = False
    """Computes each level again in the backward pass."""
    shard_optimizer: bool = False
    """Divides Adam's moments among the devices."""

    def problems(self) -> list[str]:
        """What is wrong with the values."""
        found = [*super().problems(), *at_least(1, devices=self.devices, batch=self.batch), *known_loss(self.loss)]
        uneven = [count for count in self.devices if count > NODE and count % NODE]
        if uneven and Path(self.target).is_file():
            found.append(f"devices={uneven[0]}: GPUs come in nodes of {NODE}, must be a multiple of {NODE} or below it")
        return found


def devices_of(target: str, count: int) -> Sequence[Any]:
    """The first devices of a target.

    Args:
      target: as in `Options`.
      count: how many.

    Raises:
      ValueError: XLA knows no such target, or it has fewer devices.
    """
    import jax
    from jax.experimental import topologies

    found: Sequence[Any] = jax.devices()  # which also finds the plugins that can compile for other devices
    if target and Path(target).is_file():
        hosts = -(-count // NODE)
        description = {"target_config": Path(target).read_text(), "topology": f"1x{hosts}x{count // hosts}"}
        found = _described(target, topologies.get_topology_desc, platform="cuda", **description)
    elif target:
        found = _described(target, topologies.get_topology_desc, target, "tpu")
    if len(found) < count:
        raise ValueError(f"{target or 'this machine'} has {len(found)} devices, {count} were asked for")
    return found[:count]


def _described(target: str, describe: Callable[..., Any], *arguments: Any, **options: Any) -> Sequence[Any]:
    try:
        return describe(*arguments, **options).devices
    except Exception as error:  # whatever a plugin raises that is absent, or was told what it does not know
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"target={target}: no file and no TPU topology that XLA can compile for here ({reason}); "
            "TPUs need the extra tpu, GPUs the extra cuda13"
        ) from error


def program(target: str, remat: bool, shard_optimizer: bool, work: dict[str, Any]) -> dict[str, Callable[..., Any]]:
    """What the worker serves: the plan of a step for some devices and some images a device."""
    import jax
    import jax.numpy as jnp
    import optax

    from experiments.bench.hlo import Module
    from experiments.bench.jax_programs import Compiled, planned
    from experiments.bench.workload import ADAM, CHANNELS, LEARNING_RATE
    from jaxunet import UNet
    from jaxunet.losses import LOSSES
    from jaxunet.sharding import make_mesh
    from jaxunet.step import abstract_state, compile_predict_step, compile_train_step, state_sharding

    task = Workload(**work)
    model = UNet(
        base_filters=task.base_filters,
        num_layers=task.num_layers,
        dropout_rate=task.dropout_rate,
        dtype=jnp.dtype(task.dtype),
        remat=remat,
    )
    shape, side = jax.ShapeDtypeStruct, task.size
    state = abstract_state(model, optax.adam(LEARNING_RATE, **ADAM), image_shape=(side, side, CHANNELS))

    def step(devices: Sequence[Any], images: int) -> Compiled:
        mesh = make_mesh(devices)
        batch = {
            "image": shape((images, side, side, CHANNELS), jnp.uint8),
            "mask": shape((images, side, side, 1), jnp.uint8),
            "weight": shape((images,), jnp.float32),
        }
        if task.task == "predict":
            return Compiled(compile_predict_step(mesh, apply_fn=model.apply), state.params, (batch["image"],))
        sharding = state_sharding(state, mesh, split_optimizer=shard_optimizer)
        train = compile_train_step(mesh, loss=LOSSES[task.loss].fn, seed=0, state_sharding=sharding)
        return Compiled(train, state, (batch,))

    def plan(devices: int, batch: int) -> dict[str, Any]:
        chosen = devices_of(target, devices)
        compiled = step(chosen, devices * batch).compile()
        module = Module(compiled.as_text())
        collectives = module.collectives()
        return {
            "device": chosen[0].device_kind,
            "memory": planned(compiled),
            "flops": module.total_flops(),
            "bytes_moved": module.total_bytes(),
            "operations": sum(runs for _, runs in module.scheduled()),
            "collectives": collectives,
            "bytes_exchanged": sum(found["runs"] * found["bytes"] for found in collectives),
        }

    return {"plan": plan}


def measure(options: Options) -> dict[str, Any]:
    """Compiles for every number of devices and of images.

    Returns:
      `{"device", "results": [{"devices", "batch", "memory", "flops", "bytes_moved", "operations", "collectives",
      "bytes_exchanged"}]}`, all of one device; the batch is that of all devices.

    Raises:
      WorkerError: XLA cannot compile for the target, or it has fewer devices.
    """
    network = {name: getattr(options, name) for name in ("size", "base_filters", "num_layers", "dropout_rate")}
    work = Workload(task=options.task, loss=options.loss, dtype=options.dtype, **network)
    arguments = {name: getattr(options, name) for name in ("target", "remat", "shard_optimizer")}
    if options.target:
        environment = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    else:  # of no effect but on a CPU
        environment = {"XLA_FLAGS": with_simulated_devices(max(options.devices))}
    rows = []
    program = ("the compiler", "experiments.bench.plan:program", {**arguments, "work": dataclasses.asdict(work)})
    with Worker(*program, environment=environment) as worker:
        for devices in options.devices:
            for batch in options.batch:
                found = worker.call("plan", devices=devices, batch=batch)
                rows.append({"devices": devices, "batch": devices * batch, **found})
    return {"device": rows[0]["device"], "results": rows}


def main(argv: Sequence[str]) -> int:
    """Compiles, prints a table and writes what was asked for."""
    options = parse(Options, argv, command="plan")
    from experiments import console as report
    from experiments.bench import results
    from experiments.bench.scaling import describe

    results.check_new(options.json)
    content = measure(options)
    results.write_json(options.json, "plan", dataclasses.asdict(options), content)
    rows = [
        [
            row["devices"],
            row["batch"],
            f"{row['memory']['planned'] / 1e6:.1f}",
            f"{row['memory']['arguments'] / 1e6:.1f}",
            f"{row['memory']['temporaries'] / 1e6:.1f}",
            f"{row['flops'] / 1e9:.1f}",
            f"{row['bytes_moved'] / 1e9:.2f}",
            row["operations"],
            f"{row['bytes_exchanged'] / 1e6:.2f}",
            describe(row["collectives"]),
        ]
        for row in content["results"]
    ]
    columns = ("devices", "images", "MB", "arguments", "temporaries", "GFLOP", "GB moved", "operations", "exchanged MB")
    what = (
        f"{options.task}, {options.loss}, {options.dtype}" if options.task == "train" else f"predict, {options.dtype}"
    )
    title = f"{what}, {options.size}x{options.size}x3, planned for {content['device']}"
    report.table(title, (*columns, "exchanges"), rows)
    sys.stdout.write(
        "all of one device but the images. MB: arguments, results and temporaries, less results that overwrite "
        "arguments; without what libraries take while they run\n"
    )
    return 0
