"""The data program: `python -m data_pipeline {prepare,check,split}`; see `--help` of each.

Each command imports its libraries when it runs, so that `--help` takes less than a second.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from tyro.conf import Positional, arg, subcommand

from data_pipeline.console import run_program
from data_pipeline.source import Source, SourceOptions, UsageError, open_source


@dataclasses.dataclass(frozen=True)
class Options:
    """What the commands have in common."""

    root: str | None = None
    """A kaggle_3m folder, Kaggle's zip, or a folder with image and mask folders. None: synthetic slices."""
    channels: Literal[1, 3, 4] = 3
    """Channels of an image file."""
    mask_threshold: int | None = None
    """Grey value above which a mask is tumour; None: masks must contain only 0 and 255."""
    phantom_patients: int = 48
    """Number of synthetic patients."""
    phantom_seed: int = 0
    """Seed of the synthetic patients."""

    def open(self, root: str | None, *, size: tuple[int, int] | None = None, resize: bool | None = None) -> Source:
        """Opens the source."""
        options = SourceOptions(
            size=size,
            channels=self.channels,
            resize=resize,
            mask_threshold=self.mask_threshold,
            phantom_patients=self.phantom_patients,
            phantom_seed=self.phantom_seed,
        )
        return open_source(root, options)


@dataclasses.dataclass(frozen=True)
class Prepare(Options):
    """Write a data set in the format that training reads, and print what it contains. Training does this by itself."""

    size: tuple[int, int] = (256, 256)
    """Height and width of a slice."""
    resize: bool | None = None
    """Resize slices to --size; None: on for folders, off for kaggle_3m."""
    cache_dir: str | None = None
    """Folder for the prepared slices; None: $XDG_CACHE_HOME/jaxunet or ~/.cache/jaxunet."""

    def run(self) -> int:
        """Returns 0 when prepared."""
        from data_pipeline.check import facts, render
        from data_pipeline.prepare import prepare

        if self.cache_dir is not None and not self.cache_dir.strip():
            raise UsageError(f"--cache_dir={self.cache_dir!r} is not a path: name a folder")
        console = Console(soft_wrap=True)
        source = self.open(self.root, size=self.size, resize=self.resize)
        if self.root is None:
            console.print("no --root: SYNTHETIC slices, not patients", style="bold yellow")
        prepared = prepare(source, self.cache_dir, datasets=[self.root] if self.root else [])
        console.print(render(facts(prepared)))
        print(f"prepared in {prepared.path}")
        return 0


@dataclasses.dataclass(frozen=True)
class Check(Options):
    """Print what a data set contains and what is wrong with it. Writes nothing. Exit code 1 if there are problems."""

    def run(self) -> int:
        """Returns 1 if the data have problems."""
        from data_pipeline.check import decode, facts, render

        found = facts(decode(self.open(self.root)))
        Console(soft_wrap=True).print(render(found))
        return 1 if found.problems else 0


@dataclasses.dataclass(frozen=True)
class Split(Options):
    """Split a data set into the folders of the reference.

    ROOT is a kaggle_3m folder, Kaggle's zip, or a folder with image and mask folders. OUT receives byte copies of
    the slices with tumour, 80 % in train/image and train/mask, 20 % in test/image and test/mask, and ten test images
    in mini_test for trying inference.
    """

    root: Annotated[Positional[str], arg(metavar="ROOT")] = dataclasses.field()
    """The data set; omit it with --synthetic."""
    out: Annotated[Positional[str], arg(metavar="OUT")] = ""
    """A folder that does not exist or is empty."""
    by: Literal["slice", "patient"] = "slice"
    """slice: the reference's split, with slices of a patient on both sides; patient: the honest split."""
    seed: int = 0
    """The same seed gives the same split."""
    synthetic: bool = False
    """Write synthetic slices, for demonstrations."""
    size: tuple[int, int] = (256, 256)
    """Height and width of synthetic slices."""
    picture_format: Literal["tif", "png"] = "tif"
    """File format of synthetic slices."""

    def run(self) -> int:
        """Returns 0 when written."""
        from data_pipeline.split_folders import write_split

        if self.seed < 0:
            raise UsageError(f"--seed={self.seed}: must be at least 0")
        if self.synthetic:
            if self.out:
                raise UsageError("with --synthetic name OUT alone, without ROOT")
            source, out = self.open(None, size=self.size), Path(self.root)
        else:
            if not self.out:
                raise UsageError("OUT is missing: python -m data_pipeline split ROOT OUT")
            root, out = Path(self.root), Path(self.out)
            if root.is_dir() and out.resolve().is_relative_to(root.resolve()):
                raise UsageError(f"OUT lies in ROOT: {out}; the copies would become part of the data set")
            source = self.open(self.root, resize=False)
        counts = write_split(source, out, by=self.by, seed=self.seed, picture_format=self.picture_format)
        print(source.title)
        for note in counts.notes:
            print(f"note: {note}")
        print(
            f"{counts.train} training and {counts.test} test slices with tumour, {counts.mini_test} in mini_test: {out}"
        )
        return 0


Command = (
    Annotated[Prepare, subcommand("prepare")]
    | Annotated[Check, subcommand("check")]
    | Annotated[Split, subcommand("split")]
)


def parse(argv: Sequence[str]) -> Prepare | Check | Split:
    """Returns the command that a command line names; exits with 2 if it is wrong."""
    return tyro.cli(Command, prog="python -m data_pipeline", args=argv, use_underscores=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0 done, 1 bad data, 2 usage, 130 interrupted."""
    return run_program(lambda words: parse(words).run(), argv)


if __name__ == "__main__":
    sys.exit(main())
