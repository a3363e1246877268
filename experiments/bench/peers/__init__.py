"""The peers: this library and its alternatives. One file per framework, which imports it."""

import dataclasses
import importlib.util
from collections.abc import Sequence
from typing import Any

from experiments.bench.workload import Workload


@dataclasses.dataclass(frozen=True)
class Peer:
    """A way to compute the workload.

    Attributes:
      label: for tables.
      function: `module:function` in this package, which `worker` serves.
      packages: what must be installed.
      dtype: of the computation.
      compiled: whether an eager framework compiles.
      same_network: computes the reference's network, so that parameters and losses must agree.
      on_cpu: whether it takes part on a CPU by default; bfloat16 of XLA and MONAI is meant for accelerators.
    """

    label: str
    function: str
    packages: tuple[str, ...]
    dtype: str = "float32"
    compiled: bool = False
    same_network: bool = True
    on_cpu: bool = True

    @property
    def target(self) -> str:
        """The function with its full name."""
        return f"{PEER_MODULES}.{self.function}"

    def arguments(self, work: Workload) -> dict[str, Any]:
        """The arguments of the function."""
        return dataclasses.asdict(dataclasses.replace(work, dtype=self.dtype, compiled=self.compiled))


PEER_MODULES = __name__
"""Prefix of the functions that `worker` serves."""

_JAX, _KERAS, _TORCH, _MONAI = ("jax", "flax", "optax"), ("tensorflow", "keras"), ("torch",), ("torch", "monai")
_BF16 = "bfloat16"

PEERS: dict[str, Peer] = {
    "jaxunet": Peer("jaxunet", "jaxunet:serve", _JAX),
    "jaxunet_bf16": Peer("jaxunet, bf16", "jaxunet:serve", _JAX, _BF16, on_cpu=False),
    "flax": Peer("plain Flax", "flax:serve", _JAX),
    "flax_bf16": Peer("plain Flax, bf16", "flax:serve", _JAX, _BF16, on_cpu=False),
    "keras": Peer("Keras", "keras:serve", _KERAS),
    "keras_bf16": Peer("Keras, bf16", "keras:serve", _KERAS, _BF16, on_cpu=False),
    "pytorch": Peer("PyTorch", "torch:serve", _TORCH),
    "pytorch_compiled": Peer("PyTorch, compiled", "torch:serve", _TORCH, compiled=True),
    "pytorch_bf16": Peer("PyTorch, bf16 autocast", "torch:serve", _TORCH, _BF16),
    "pytorch_bf16_compiled": Peer("PyTorch, bf16 autocast, compiled", "torch:serve", _TORCH, _BF16, compiled=True),
    "monai": Peer("MONAI UNet", "monai:serve", _MONAI, same_network=False),
    "monai_bf16": Peer("MONAI UNet, bf16", "monai:serve", _MONAI, _BF16, same_network=False, on_cpu=False),
}

BASELINE = "jaxunet"
"""Times are compared with this peer, or with its bfloat16 form by bfloat16 peers where that form takes part."""


def missing(packages: Sequence[str]) -> str:
    """Why a peer that needs these packages is absent; empty if all are installed."""
    names = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"{' and '.join(names)} not installed" if names else ""


def baseline(name: str, present: Sequence[str]) -> str | None:
    """The peer that the times of `name` are compared with."""
    same_dtype = f"{BASELINE}_bf16" if PEERS[name].dtype == _BF16 else BASELINE
    return next((base for base in (same_dtype, BASELINE) if base in present), None)
