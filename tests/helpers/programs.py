"""Runs the programs as a user does: in a process of their own, on a network that compiles in seconds."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

TINY = (
    "--config=demo",
    "--model.image_width=32",
    "--model.image_height=32",
    "--model.base_filters=2",
    "--model.num_layers=2",
    "--data.phantom_patients=6",
    "--train.batch_size=8",
    "--train.epochs=3",
)


def compiler_flags(devices: int = 1) -> str:
    """`XLA_FLAGS` for some simulated devices, with the optimisation of these tests."""
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    return " ".join([*flags, f"--xla_force_host_platform_device_count={devices}"])


def environment(cache: Path, devices: int = 1) -> dict[str, str]:
    """One or several simulated devices, and a compilation cache that the processes of a test share."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": compiler_flags(devices),
        "JAX_COMPILATION_CACHE_DIR": str(cache / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XDG_CACHE_HOME": str(cache),
        "COLUMNS": "160",
    }


def run(
    program: str, *args: str, cwd: Path, env: Mapping[str, str], timeout: float = 240
) -> subprocess.CompletedProcess:
    """Runs `python -m experiments.<program>`, or `python -m data_pipeline`, to its end."""
    module = program if program == "data_pipeline" else f"experiments.{program}"
    command = [sys.executable, "-m", module, *args]
    return subprocess.run(command, cwd=cwd, env=dict(env), capture_output=True, text=True, timeout=timeout)


def interrupt(
    args: tuple[str, ...], when: Callable[[], bool], number: int, *, cwd: Path, env: Mapping[str, str]
) -> tuple[int, str]:
    """Starts training and sends a signal as soon as `when()` holds; returns the exit code and the output."""
    command = [sys.executable, "-m", "experiments.train", *args]
    with subprocess.Popen(
        command, cwd=cwd, env=dict(env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and not when():
            assert time.monotonic() < deadline, "the moment to send the signal never came"
            time.sleep(0.0005)
        if process.poll() is None:
            process.send_signal(number)
        output, _ = process.communicate(timeout=120)
    return process.returncode, output


def killed(returncode: int) -> bool:
    """Whether a process ended by SIGKILL."""
    return returncode == -signal.SIGKILL
