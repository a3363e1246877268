"""`python -m experiments.bench trace`: a profile of a step, for xprof or TensorBoard.

Its trace viewer shows what ran when; its op profile and roofline show which operations take the time, and how far each
is from the peak of the device.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from experiments.bench import results
from experiments.bench.options import TraceOptions
from experiments.bench.peers import PEERS
from experiments.bench.worker import Worker, xla_flags
from experiments.config import ConfigError


def main(options: TraceOptions) -> int:
    """Writes the profile and prints how to open it."""
    results.check_new(options.json)
    if Path(options.directory).exists():
        raise ConfigError(f"directory={options.directory} exists already: name another one")
    content = measure(options)
    results.write_json(options.json, "trace", dataclasses.asdict(options), content)
    under, without = (results.milliseconds(content[key]) for key in ("step_seconds", "undisturbed_step_seconds"))
    sys.stdout.write(
        f"{under} ms per step under the profiler, {without} without\n"
        f"profile: {options.directory}\n"
        f"open it: pip install xprof && xprof --logdir={options.directory}\n"
        f"or:      pip install tensorboard xprof && tensorboard --logdir={options.directory}\n"
    )
    return 0


def measure(options: TraceOptions) -> dict[str, Any]:
    """Times some steps, and then profiles as many.

    Returns:
      `{"machine", "undisturbed_step_seconds", "step_seconds"}`, the last under the profiler.
    """
    work = options.workload(task=options.task, loss=options.loss, batch=options.batch, dtype=options.dtype)
    # A profile does not name kernels that a GPU launches in one graph, so each is launched on its own.
    flags = xla_flags("--xla_gpu_enable_command_buffer=")
    with Worker("jaxunet", PEERS["jaxunet"].target, dataclasses.asdict(work), environment=flags) as worker:
        machine = worker.call("describe")
        for _ in range(3):
            worker.call("run", steps=1)
        worker.call("run", steps=options.steps)
        undisturbed = worker.seconds / options.steps
        seconds = worker.call("trace", directory=options.directory, steps=options.steps)
    return {"machine": machine, "undisturbed_step_seconds": undisturbed, "step_seconds": seconds}
