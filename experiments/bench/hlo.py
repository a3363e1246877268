"""A compiled program read from XLA's text: what each instruction computes, moves and exchanges."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Any

_ELEMENT = re.compile(r"\b(pred|[suf]\d+|bf16|f8\w*|c64|c128)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations|called_computations)=\{?([^{}=]*?)(?:[},]|$)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_NAME = re.compile(r"%([\w.\-]+)")
_LAYER = re.compile(r"\b((?:encoder|decoder)\d+_\w+|head)\b")

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

CONTAINERS = ("while", "call", "conditional")
"""Instructions that run others, which are seen as well."""

_SLICES = ("slice", "dynamic-slice")

_UPDATE = "dynamic-update-slice"

_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: unique in the module.
      opcode: such as `fusion` or `convolution`.
      shape: text of the result's type, a tuple's in parentheses.
      operands: names.
      arguments: the text of the operands; of a parameter, its number.
      attributes: the rest of the line.
    """

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    arguments: str
    attributes: str

    @property
    def op_name(self) -> str:
        """The path of the JAX function that asked for it, empty if XLA made it up."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1) if found else ""

    @property
    def label(self) -> str:
        """Layer, direction and primitive, for a person: `decoder0_conv1 gradient: conv_general_dilated`."""
        layer = _LAYER.search(self.op_name)
        direction = " gradient" if "transpose(jvp" in self.op_name else ""
        primitive = self.op_name.rpartition("/")[2] or self.opcode
        return f"{layer.group(1) if layer else ''}{direction}: {primitive}".lstrip(": ")


class Module:
    """A compiled program.

    Args:
      text: of `jax.stages.Compiled.as_text()`.

    Attributes:
      name: as profiles call it, `jit_train_step`.
      computations: instructions by name, by computation, in their order; a compiled program's is its schedule.
      entry: the instructions of the computation that calls the others, which run once.
    """

    def __init__(self, text: str) -> None:
        first = re.match(r"HloModule ([\w.\-]+)", text)
        self.name = first.group(1) if first else ""
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry: dict[str, Instruction] = {}
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            header = re.match(r"(?:ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$", line)
            if header and not line.startswith("HloModule"):
                current = self.computations.setdefault(header.group(1), {})
                if line.startswith("ENTRY"):
                    self.entry = current
            elif instruction := _read(line):
                current[instruction.name] = instruction

    def __iter__(self) -> Iterator[Instruction]:
        return (instruction for body in self.computations.values() for instruction in body.values())

    @functools.cached_property
    def _named(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self}

    def __contains__(self, name: object) -> bool:
        return name in self._named

    def __getitem__(self, name: str) -> Instruction:
        return self._named[name]

    def flops(self, instruction: Instruction) -> float:
        """Floating-point operations of the convolutions and matrix products in it; a loop's body counts once."""
        opcode, attributes = instruction.opcode, instruction.attributes
        operands = [self._named[name].shape for name in instruction.operands if name in self._named]
        if opcode == "convolution":
            kernel = elements(operands[1])
            return 2 * math.prod(elements(instruction.shape)) * math.prod(kernel) / kernel[_output_axis(attributes)]
        if opcode == "dot":
            found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", attributes)
            axes = [int(axis) for axis in found.group(1).split(",") if axis] if found else []
            return 2 * math.prod(elements(instruction.shape)) * math.prod(elements(operands[0])[axis] for axis in axes)
        if opcode == "custom-call" and re.search(r'custom_call_target="__cu(dnn\$conv|blas)', attributes):
            # Whichever of the three is the result: |x| |kernel| |y| = (operations / 2)^2 / taps, stride 1, same size.
            window = re.search(r"window=\{size=([\dx]+)", attributes)
            taps = math.prod(int(side) for side in window.group(1).split("x")) if window else 1
            sizes = [math.prod(elements(shape)) for shape in (instruction.shape, *operands[:2])]
            return 2 * math.sqrt(math.prod(sizes) * taps)
        return sum(self.flops(inner) for body in self._called(instruction) for inner in body.values())

    def bytes_moved(self, instruction: Instruction) -> int:
        """Bytes that it reads and writes: the least traffic to memory, if nothing stays in a cache.

        Those of its result and its operands; of an operand that is only sliced, those of the slices; of one that is
        overwritten in part, those of the part.
        """
        body = list(self._called(instruction)[0].values()) if instruction.opcode == "fusion" else []
        read = sum(self._bytes_read(name, instruction, body) for name in set(instruction.operands) & self._named.keys())
        last = body[-1] if body else instruction
        return read + size(self._named[last.operands[1]].shape if last.opcode == _UPDATE else instruction.shape)

    def _bytes_read(self, operand: str, instruction: Instruction, body: list[Instruction]) -> int:
        whole = size(self._named[operand].shape)
        if body:
            places = [str(place) for place, name in enumerate(instruction.operands) if name == operand]
            names = {inner.name for inner in body if inner.opcode == "parameter" and inner.arguments in places}
        else:
            body, names = [instruction], {operand}
        parts = 0
        for use in body:
            if names & set(use.operands):
                if use.opcode not in (*_SLICES, _UPDATE) or names & set(use.operands[1:]):
                    return whole
                parts += size(use.shape) if use.opcode in _SLICES else 0
        return min(whole, parts)

    def _called(self, instruction: Instruction) -> list[dict[str, Instruction]]:
        return [self.computations[name] for name in self._names_called(instruction)]

    def _names_called(self, instruction: Instruction) -> list[str]:
        names = [name.strip(" %") for group in _CALLED.findall(instruction.attributes) for name in group.split(",")]
        return [name for name in names if name in self.computations]

    @functools.cached_property
    def _runs(self) -> dict[str, int]:
        """How often each computation runs; a loop of unknown length and each branch count as once."""
        callers: dict[str, list[tuple[str, int]]] = {}
        for caller, body in self.computations.items():
            for instruction in body.values():
                trips = _TRIPS.search(instruction.attributes) if instruction.opcode == "while" else None
                for name in self._names_called(instruction):
                    callers.setdefault(name, []).append((caller, int(trips.group(1)) if trips else 1))

        @functools.cache
        def runs(name: str) -> int:
            return sum(runs(caller) * trips for caller, trips in callers[name]) if name in callers else 1

        return {name: runs(name) for name in self.computations}

    def scheduled(self) -> Iterator[tuple[Instruction, int]]:
        """The operations that run by themselves, not as a part of another, and how often each does."""
        reached = [self.entry]
        for body in reached:
            for instruction in body.values():
                if instruction.opcode in CONTAINERS:
                    reached += self._called(instruction)
        for name, body in self.computations.items():
            if any(body is other for other in reached):
                for instruction in body.values():
                    if instruction.opcode not in (*_FREE, *CONTAINERS):
                        yield instruction, self._runs[name]

    def total_bytes(self) -> int:
        """Bytes that all operations read and write, each as often as it runs."""
        return sum(runs * self.bytes_moved(operation) for operation, runs in self.scheduled())

    def total_flops(self) -> float:
        """Floating-point operations of all convolutions and matrix products, each as often as it runs."""
        return sum(runs * self.flops(operation) for operation, runs in self.scheduled())

    def collectives(self) -> list[dict[str, Any]]:
        """What the devices exchange.

        Returns:
          For each exchange `{"kind", "name", "runs", "bytes", "types", "asynchronous", "overlapped_operations",
          "overlapped_flops"}`: how often it takes place, the bytes that a device hands in each time and their types,
          and the work scheduled between its start and its end.
        """
        found: list[dict[str, Any]] = []
        for computation, body in self.computations.items():
            order = list(body.values())
            for index, instruction in enumerate(order):
                kind = self._collective(instruction)
                if not kind:
                    continue
                started = instruction.opcode.endswith("-start")
                between = self._until_done(order, index) if started else []
                operands = [self._named[name].shape for name in instruction.operands if name in self._named]
                found.append(
                    {
                        "kind": kind,
                        "name": instruction.name,
                        "runs": self._runs[computation],
                        "bytes": sum(map(size, operands)),
                        "types": sorted({kind for shape in operands for kind, _ in _ELEMENT.findall(shape)}),
                        "asynchronous": started,
                        "overlapped_operations": len(between),
                        "overlapped_flops": sum(self.flops(inner) for inner in between),
                    }
                )
        return found

    def _collective(self, instruction: Instruction) -> str:
        opcode = instruction.opcode.removesuffix("-start")
        if opcode in COLLECTIVES:
            return opcode
        if opcode == "async":
            inner = [i.opcode for body in self._called(instruction) for i in body.values() if i.opcode in COLLECTIVES]
            return inner[0] if inner else ""
        return ""

    def _until_done(self, order: list[Instruction], index: int) -> list[Instruction]:
        work: list[Instruction] = []
        for instruction in order[index + 1 :]:
            if instruction.opcode.endswith("-done") and order[index].name in instruction.operands:
                return work
            if instruction.opcode not in _FREE and not instruction.opcode.endswith(("-start", "-done", "-update")):
                work.append(instruction)
        return work


def _read(line: str) -> Instruction | None:
    """`  ROOT %name = type opcode(operands), attributes`."""
    head = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    rest = line[head.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.find(" ")
    opcode = re.match(r"\s*([\w\-]+)\(", rest[end:])
    if not opcode:
        return None
    start = end + opcode.end() - 1
    stop = start + _closing(rest[start:])
    arguments = rest[start + 1 : stop]
    operands = tuple(_NAME.findall(arguments))
    return Instruction(head.group(1), opcode.group(1), rest[:end], operands, arguments, rest[stop + 1 :])


def _closing(text: str) -> int:
    """Index of the parenthesis that closes the one at the beginning."""
    depth = 0
    for index, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return index
    return len(text) - 1


def elements(shape: str) -> list[int]:
    """Sides of an array's type, of a tuple's first array."""
    found = _ELEMENT.search(shape)
    return [int(side) for side in found.group(2).split(",") if side] if found else []


def size(shape: str) -> int:
    """Bytes of a type, of all arrays of a tuple."""
    total = 0
    for kind, sides in _ELEMENT.findall(shape):
        bits = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}.get(kind) or int(re.sub(r"\D.*", "", kind[1:]))
        total += math.prod(int(side) for side in sides.split(",") if side) * bits // 8
    return total


def _output_axis(attributes: str) -> int:
    """Axis of a convolution's kernel that counts output features."""
    labels = re.search(r"dim_labels=\w+_(\w+)->", attributes)
    assert labels, attributes
    return labels.group(1).index("o")
