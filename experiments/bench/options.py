"""Options of the benchmarks: one class per command, its ranges on the fields, and the command line."""

import dataclasses
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from experiments.bench.peers import PEERS
from experiments.bench.workload import Workload
from experiments.config import raise_problems

TASKS, LOSSES, DTYPES = ("train", "predict"), ("bce", "hybrid"), ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Rule:
    """A condition on a field; of a tuple, on each of its values.

    Attributes:
      holds: whether a value is allowed.
      text: completes the sentence "rounds=0: ...".
    """

    holds: Callable[[Any], bool]
    text: str


def at_least(least: int) -> Rule:
    """A lower bound."""
    return Rule(lambda value: value >= least, f"must be at least {least}")


def among(names: Sequence[str]) -> Rule:
    """A choice."""
    return Rule(lambda value: value in names, f"must be among {', '.join(names)}")


def comma_separated(kind: Callable[[str], Any]) -> PrimitiveConstructorSpec[Any]:
    """Values separated by commas, as in all programs here; repeated values count once."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="A,B",
        instance_from_str=lambda words: tuple(
            dict.fromkeys(kind(word) for word in words[0].replace(" ", "").split(",") if word)
        ),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value))],
    )


Count = Annotated[int, at_least(1)]
Counts = Annotated[tuple[int, ...], comma_separated(int), at_least(1)]
Seconds = Annotated[float, Rule(lambda value: value >= 0, "must be at least 0 seconds")]
Names = comma_separated(str)


@dataclasses.dataclass(frozen=True)
class OutputOptions:
    """Common to all commands."""

    json: str | None = None
    """A new file for all figures."""

    def cross_checks(self) -> Iterator[str]:
        """What is wrong with combinations of values."""
        yield from ()


@dataclasses.dataclass(frozen=True)
class NetworkOptions(OutputOptions):
    """The network and its images."""

    size: Count = 256
    """Height and width of the images in pixels; a multiple of 2^num_layers."""
    base_filters: Count = 16
    """Filters of the first level."""
    num_layers: Annotated[int, Rule(lambda value: 1 <= value <= 16, "must be from 1 to 16")] = 6
    """Number of 2x2 poolings; 6 with 16 filters is the reference's network of 31 110 001 parameters."""
    dropout_rate: float = 0.08
    """Dropout of level i is i times this rate. At 0 all peers must reach the same loss in every step."""

    def cross_checks(self) -> Iterator[str]:
        """What is wrong with combinations of values."""
        if 1 <= self.num_layers <= 16 and self.size % 2**self.num_layers:
            yield f"size={self.size}: must be a positive multiple of {2**self.num_layers} (2^num_layers)"
        if not 0 <= self.dropout_rate * max(self.num_layers, 1) < 1:
            yield f"dropout_rate={self.dropout_rate}: times num_layers it must be from 0 to below 1"

    def workload(self, **values: Any) -> Workload:
        """The workload on this network, with other values as given."""
        names = ("size", "base_filters", "num_layers", "dropout_rate")
        return Workload(**{name: getattr(self, name) for name in names}, **values)


@dataclasses.dataclass(frozen=True)
class StepOptions(NetworkOptions):
    """A training step and inference of the network, compared with plain Flax, Keras, PyTorch and MONAI."""

    batch: Counts = (4,)
    """Images per step, one or several sizes."""
    task: Annotated[tuple[str, ...], Names, among(TASKS)] = TASKS
    """train, predict."""
    loss: Annotated[tuple[str, ...], Names, among(LOSSES)] = LOSSES
    """Losses of the training step: bce, hybrid."""
    dtype: Annotated[tuple[str, ...], Names, among(DTYPES)] = DTYPES
    """float32 (TF32 on GPUs), bfloat16; peers with other number formats are left out."""
    only: Annotated[tuple[str, ...], Names, among(tuple(PEERS))] = ()
    """Names of peers; none: all that suit this machine."""
    rounds: Count = 5
    """Turns of each peer; confidence intervals need at least six."""
    seconds: Seconds = 2.0
    """Minimum duration of a turn."""
    resident: bool = True
    """Keep all processes between turns. --no_resident starts a new process for each turn and needs less memory."""
    together: bool = False
    """Start and compile the peers of all workloads at the same time, to save time on a machine with many processors."""
    patience: Annotated[float, Rule(lambda value: value > 0, "must be more than 0 seconds")] = 1800.0
    """Seconds that a peer may take per call, or all may take to compile with --together; slower ones are left out."""
    keep_freed_memory: bool = False
    """Make the C library of every peer keep freed memory; by default only jaxunet's does."""
    write_docs: bool = False
    """Replace a table in the file of --docs."""
    docs: str = "docs/benchmarks.md"
    """The page in which --write_docs replaces a table."""
    place: str = "step"
    """Name of that table, as in the marks around it."""

    def cross_checks(self) -> Iterator[str]:
        """What is wrong with combinations of values."""
        yield from super().cross_checks()
        if self.together and not self.resident:
            yield "together: needs resident processes"

    def workloads(self) -> Iterator[Workload]:
        """What is measured, in this order."""
        for batch in self.batch:
            for task, losses in (("train", self.loss), ("predict", ("bce",))):
                for loss in losses if task in self.task else ():
                    yield self.workload(task=task, loss=loss, batch=batch)


@dataclasses.dataclass(frozen=True)
class LoaderOptions(NetworkOptions):
    """Slices per second, stage by stage and cache by cache, compared with a torch DataLoader."""

    root: str | None = None
    """The kaggle_3m folder, whose TIFF files the DataLoader reads. None: synthetic slices, without a DataLoader."""
    cache_dir: str | None = None
    """Where the prepared slices are. None: $XDG_CACHE_HOME/jaxunet."""
    batch: Count = 4
    """Slices per batch."""
    threads: Count = 2
    """Threads of the loader."""
    workers: Count = 2
    """Processes of the DataLoader."""
    rounds: Count = 5
    """Turns of each."""
    seconds: Seconds = 1.0
    """Minimum duration of a turn."""
    steps: Annotated[int, at_least(0)] = 3
    """Training steps per round, on one resident batch and with each cache; 0 leaves them out."""


@dataclasses.dataclass(frozen=True)
class LossesOptions(OutputOptions):
    """Every loss with its gradient, compared with MONAI and segmentation_models.pytorch."""

    size: Count = 256
    """Height and width of the images in pixels."""
    batch: Count = 16
    """Images per step."""
    only: Annotated[tuple[str, ...], Names] = ()
    """Names of losses; none: all."""
    rounds: Count = 5
    """Turns of each loss."""
    seconds: Seconds = 0.5
    """Minimum duration of a turn."""


@dataclasses.dataclass(frozen=True)
class ScalingOptions(NetworkOptions):
    """A training step on one to N devices: its time, and the bytes that the devices exchange."""

    batch: Count = 4
    """Images per step and device."""
    loss: Literal["bce", "hybrid"] = "hybrid"
    """The loss."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the computation."""
    devices: Counts = ()
    """Numbers of devices; none: 1, 2, 4 and so on up to all devices; on a CPU 1, 2, 4 and 8 simulated devices."""
    rounds: Count = 5
    """Turns of each number of devices."""
    seconds: Seconds = 2.0
    """Minimum duration of a turn."""


@dataclasses.dataclass(frozen=True)
class TraceOptions(NetworkOptions):
    """A profile of a step, for xprof or TensorBoard."""

    directory: str = "trace"
    """A new directory for the profile."""
    batch: Count = 4
    """Images per step."""
    task: Literal["train", "predict"] = "train"
    """A training step or inference."""
    loss: Literal["bce", "hybrid"] = "hybrid"
    """The loss."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the computation."""
    steps: Count = 5
    """Steps in the profile."""


Options = StepOptions | LoaderOptions | LossesOptions | ScalingOptions | TraceOptions

COMMANDS: dict[str, type[Options]] = {
    "step": StepOptions,
    "loader": LoaderOptions,
    "losses": LossesOptions,
    "scaling": ScalingOptions,
    "trace": TraceOptions,
}
"""Each is a module of this package with a function `main(options)`."""


def parse(argv: Sequence[str]) -> Options:
    """Returns the options of the command that the first word names; `--help` prints them and exits.

    Raises:
      ConfigError: values out of range, all in one message. Unknown words end the program with exit code 2.
    """
    words = list(argv)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words.insert(0, "step")
    kind = tyro.extras.subcommand_type_from_defaults(
        {name: options() for name, options in COMMANDS.items()},
        {name: options.__doc__ or "" for name, options in COMMANDS.items()},
        prefix_names=False,
    )
    options: Options = tyro.cli(
        kind,
        args=words,
        prog="python -m experiments.bench",
        use_underscores=True,
        description="Measures speed and memory. The default command is step.",
    )
    raise_problems([*out_of_range(options), *options.cross_checks()])
    return options


def command_of(options: Options) -> str:
    """The command whose options these are."""
    return next(name for name, kind in COMMANDS.items() if kind is type(options))


def out_of_range(options: Options) -> Iterator[str]:
    """One message per rule that a field breaks."""
    hints = typing.get_type_hints(type(options), include_extras=True)
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        values = value if isinstance(value, tuple) else (value,)
        for rule in getattr(hints[field.name], "__metadata__", ()):
            # No value at all is allowed only where that is the default.
            if isinstance(rule, Rule) and (not all(map(rule.holds, values)) or (not values and field.default)):
                wrong = ",".join(str(one) for one in values if not rule.holds(one))
                yield f"{field.name}={wrong}: {rule.text}"
