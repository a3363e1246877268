"""Lists the contents of a data set and every problem with it (training stops at the first)."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from data_pipeline.console import track
from data_pipeline.files import some
from data_pipeline.prepared import Entry, Prepared
from data_pipeline.source import DataError, Source, source_kind
from data_pipeline.splits import split

SHOWN = 10
"""Problems and duplicates that are printed."""


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A source whose slices were all read once, without writing a cache; indexed as `Prepared` is."""

    source: Source
    rows: tuple[int, ...]  # for each entry its index in the source
    entries: tuple[Entry, ...]  # the slices that could be read
    shapes: tuple[tuple[int, ...], ...]  # height, width and channels of each
    problems: tuple[str, ...]  # why others could not be read

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        image, mask = self.source.read(self.rows[index])
        return {"image": image, "mask": mask}


@dataclasses.dataclass(frozen=True)
class Site:
    """One institution: its name (empty where unknown), patients, slices, and slices with tumour."""

    name: str
    patients: int
    slices: int
    positives: int


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a data set holds."""

    title: str  # of the source
    patients: int  # that are named
    slices: int
    positives: int  # slices with tumour
    shapes: tuple[tuple[tuple[int, ...], int], ...]  # (height, width, channels) and how many, most frequent first
    tumour_share: float  # of the pixels of slices with tumour; 0 where there are none
    smallest: tuple[int, str] | None  # fewest tumour pixels in a slice with tumour, and its name
    slices_per_patient: tuple[int, int]  # fewest and most
    sites: tuple[Site, ...]  # by name
    duplicates: tuple[tuple[str, ...], ...]  # slices with the same image and mask, in groups; blank ones do not count
    problems: tuple[str, ...]  # what should be repaired
    notes: tuple[str, ...]  # what should be known
    baseline: tuple[int, float] | None  # synthetic data: the best threshold, and its Dice on the test patients


def threshold_baseline(
    data: Prepared | Decoded, train_indices: Sequence[int], test_indices: Sequence[int], *, channel: int = 1
) -> tuple[int, float]:
    """Segments by one threshold: a model that has learnt anything scores higher.

    Tumour is where the channel is greater than the threshold. The threshold is the integer from 0 to 255 with the
    greatest Dice over all pixels of the training slices (the smallest of several).

    Args:
      data: the slices.
      train_indices: where the threshold is chosen.
      test_indices: where it is scored.
      channel: which channel; the default is FLAIR. Images with fewer channels: their last.

    Returns:
      The threshold, and its Dice over all pixels of the test slices (NaN without tumour and without prediction).
    """
    dice = _dice_by_threshold(data, train_indices, channel)
    threshold = int(np.argmax(np.nan_to_num(dice, nan=0.0)))
    return threshold, float(_dice_by_threshold(data, test_indices, channel)[threshold])


def decode(source: Source) -> Decoded:
    """Reads every slice of a source and collects what is wrong with each."""
    rows, entries, shapes, problems = [], [], [], []
    for index in track(range(len(source.records)), "reading"):
        try:
            image, mask = source.read(index)
        except DataError as error:
            problems.append(str(error))
            continue
        rows.append(index)
        shapes.append(image.shape)
        entries.append(Entry.of(source.records[index], image, mask))
    return Decoded(source, tuple(rows), tuple(entries), tuple(shapes), tuple(problems))


def facts(data: Prepared | Decoded) -> Facts:
    """Counts what the slices contain; only slices with equal digests are read again.

    For synthetic data it also finds the best threshold on the training patients, which reads them all.
    """
    entries = data.entries
    if isinstance(data, Decoded):
        described: Source | Prepared = data.source
        shapes, problems = data.shapes, list(data.problems)
    else:
        described, shapes, problems = data, (data.shape,) * len(entries), []
    kind = source_kind(described.kind)
    volumes: dict[str, list[int]] = defaultdict(list)
    for entry in entries:
        if entry.patient:
            volumes[entry.patient].append(entry.slice)
    sites = []
    for name in sorted({entry.site for entry in entries}):
        here = [entry for entry in entries if entry.site == name]
        patients = {entry.patient for entry in here} - {""}
        sites.append(Site(name, len(patients), len(here), sum(entry.positives > 0 for entry in here)))
    tumours = [(entry.positives, entry.name) for entry in entries if entry.positives]
    pixels = sum(shape[0] * shape[1] for shape, entry in zip(shapes, entries, strict=True) if entry.positives)
    lengths = [len(numbers) for numbers in volumes.values()] or [0]
    if entries and not tumours:
        problems.append(f"0 of {len(entries)} masks contain tumour")
    if kind.fixed_size:
        problems += _odd_sizes(entries, shapes)
    if kind.gapless:
        problems += _gaps(volumes)
    baseline = None
    if kind.synthetic and not problems:
        parts = split(entries, by="patient", slices="all")
        baseline = threshold_baseline(data, parts.train, parts.test)
    return Facts(
        title=described.title,
        patients=len(volumes),
        slices=len(entries),
        positives=len(tumours),
        shapes=tuple(Counter(shapes).most_common()),
        tumour_share=sum(count for count, _ in tumours) / max(pixels, 1),
        smallest=min(tumours, default=None),
        slices_per_patient=(min(lengths), max(lengths)),
        sites=tuple(sites),
        duplicates=_duplicates(data),
        problems=tuple(problems),
        notes=tuple(described.notes),
        baseline=baseline,
    )


def render(found: Facts) -> Group:
    """Returns facts as a table of figures, a table of sites and anything unusual, for `rich.console.Console.print`."""
    figures = Table(show_header=False)
    figures.add_column(style="bold")
    figures.add_column()
    shapes = [f"{'x'.join(map(str, shape))}: {count}" for shape, count in found.shapes]
    rows = {
        "patients": f"{found.patients}, with {found.slices_per_patient[0]} to {found.slices_per_patient[1]} slices",
        "slices": f"{found.slices}",
        "with tumour": f"{found.positives} ({_percent(found.positives, found.slices)})",
        "tumour pixels": f"{100 * found.tumour_share:.2f} % of the slices with tumour",
        "smallest tumour": f"{found.smallest[0]} pixels, {found.smallest[1]}" if found.smallest else "none",
        "height x width x channels": some(shapes, 5),
        "duplicates": f"{sum(map(len, found.duplicates))} slices" if found.duplicates else "none",
    }
    if found.baseline:
        threshold, dice = found.baseline
        rows["best FLAIR threshold"] = f"> {threshold}: Dice {dice:.4f} over all pixels of the test patients"
    for name, value in rows.items():
        figures.add_row(name, value)
    parts: list[Any] = [Text(found.title, style="bold"), figures]
    if any(site.name for site in found.sites):
        sites = Table("site", "patients", "slices", "with tumour")
        for site in found.sites:
            share = f"{site.positives} ({_percent(site.positives, site.slices)})"
            sites.add_row(site.name or "(unknown)", str(site.patients), str(site.slices), share)
        parts.append(sites)
    lines = [("same pixels", " = ".join(group)) for group in found.duplicates[:SHOWN]]
    lines += [("note", note) for note in found.notes]
    lines += [("problem", problem) for problem in found.problems[:SHOWN]]
    if (more := len(found.problems) - SHOWN) > 0:
        lines.append(("problem", f"and {more} more"))
    parts += [Text(f"{label}: {line}", style="red" if label == "problem" else "") for label, line in lines]
    return Group(*parts)


def _dice_by_threshold(data: Prepared | Decoded, indices: Sequence[int], channel: int) -> np.ndarray:
    """Returns float64[256]: for each threshold the Dice over all pixels of the slices."""
    everywhere, in_tumour = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for index in indices:
        sample = data[index]
        values = sample["image"][:, :, min(channel, sample["image"].shape[2] - 1)]
        everywhere += np.bincount(values.ravel(), minlength=256)
        in_tumour += np.bincount(values[sample["mask"][:, :, 0] > 0], minlength=256)
    above = everywhere.sum() - np.cumsum(everywhere)
    hits = in_tumour.sum() - np.cumsum(in_tumour)
    with np.errstate(invalid="ignore"):
        return 2 * hits / (above + in_tumour.sum())


def _duplicates(data: Prepared | Decoded) -> tuple[tuple[str, ...], ...]:
    groups: dict[str, list[int]] = defaultdict(list)
    for index, entry in enumerate(data.entries):
        groups[entry.digest].append(index)
    alike = [group for group in groups.values() if len(group) > 1]
    # Slices above and below the head are often blank, and then equal.
    return tuple(
        tuple(data.entries[index].name for index in group) for group in alike if np.ptp(data[group[0]]["image"])
    )


def _odd_sizes(entries: Sequence[Entry], shapes: Sequence[tuple[int, ...]]) -> list[str]:
    usual = Counter(shapes).most_common(1)[0][0] if shapes else ()
    odd = [
        f"{entry.name} ({'x'.join(map(str, shape))})"
        for entry, shape in zip(entries, shapes, strict=True)
        if shape != usual
    ]
    return [f"{len(odd)} slices are not {'x'.join(map(str, usual))} as most: {some(odd)}"] if odd else []


def _gaps(volumes: Mapping[str, list[int]]) -> list[str]:
    missing = {
        patient: sorted(set(range(min(numbers), max(numbers) + 1)) - set(numbers))
        for patient, numbers in sorted(volumes.items())
    }
    return [
        f"{patient} lacks slices {some(map(str, numbers))} between its first and its last"
        for patient, numbers in missing.items()
        if numbers
    ]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"
