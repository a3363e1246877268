"""Runs the tests on 8 simulated CPU devices, and hypothesis with the same examples every time.

The programs are compiled fast rather than well, because compiling takes longer than running them once: LLVM does not
optimise them, and XLA writes their code with its older, quicker emitter. XLA's own passes, which decide what is
computed and in which order, are those of any program. `make test-all` compiles as users do.
"""

import os
from importlib.metadata import version

# Before the first import of jax: it reads both when it starts its backend.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
GIVEN = os.environ.get("XLA_FLAGS", "")
FLAGS = ["--xla_force_host_platform_device_count=8"] if "device_count" not in GIVEN else []
if "--xla_backend_optimization_level" not in GIVEN:
    FLAGS.append("--xla_backend_optimization_level=0")
    if version("jaxlib").startswith("0.10."):  # XLA aborts on a flag that it does not know
        FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([GIVEN, *FLAGS]).strip()

from hypothesis import settings  # noqa: E402

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")

LONGEST = ("test_resume.py", "test_programs.py", "test_distributed.py", "test_losses.py", "test_cli.py")
"""Files that take minutes: they start first, so that no worker is left alone with one at the end."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
