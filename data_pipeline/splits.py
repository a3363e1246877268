"""Which slices train, validate and test: by patient, by site, or by slice as the reference does."""

import dataclasses
import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set

import numpy as np

from data_pipeline.files import some
from data_pipeline.prepared import Entry
from data_pipeline.source import DataError

WAYS = ("patient", "slice", "site")
SLICES = ("tumour", "all")

_DATED = re.compile(r"\A(TCGA_[A-Z0-9]{2}_[A-Z0-9]{4})_\d{8}\Z")


@dataclasses.dataclass(frozen=True)
class Split:
    """Indices of the slices of each part, in ascending order."""

    by: str  # "patient", "slice" or "site"
    train: tuple[int, ...]
    val: tuple[int, ...]  # for early stopping and the choice of the best weights
    test: tuple[int, ...]
    notes: tuple[str, ...]  # what the reader of the results must know, one sentence each
    whole_volumes: bool  # whether the test set holds whole volumes of patients, not single or selected slices

    def __post_init__(self):
        assert len({*self.train, *self.val, *self.test}) == len(self.train) + len(self.val) + len(self.test)


def split(
    entries: Sequence[Entry],
    *,
    by: str = "patient",
    slices: str = "tumour",
    seed: int = 0,
    test_sites: Sequence[str] = (),
) -> Split:
    """Splits slices into training, validation and test.

    - `"patient"`: about 64, 16 and 20 % of the patients, the same shares at every site; the only patient of a site
      goes to training.
    - `"site"`: the test set holds all patients of some sites; a fifth of the others, the same share at every site,
      is the validation set.
    - `"slice"`: as the reference does. The slices are shuffled, the last 20 % are the test set; of the rest, sorted
      by name, the last 20 % are the validation set. Slices of one patient are on both sides.

    Where folders fix the test set (`subset`), only the validation set is chosen. The same names, seed and options
    give the same split, whatever the order of the entries.

    Args:
      entries: the slices.
      by: see above.
      slices: "tumour" trains and validates on slices with tumour only, "all" on all. The test holds every slice of its
        patients, but under "slice" only those with tumour.
      seed: chooses among the splits.
      test_sites: under "site", the sites to test on. Default: those whose share of patients is nearest to 20 %.

    Raises:
      DataError: no patient or site in the names, too few patients, an unknown site, a patient on two sides, or a part
        without any tumour.
      ValueError: `by` or `slices` is none of the above.
    """
    if by not in WAYS or slices not in SLICES:
        raise ValueError(f"by={by!r}, slices={slices!r}: expected one of {WAYS} and one of {SLICES}")
    if test_sites and by != "site":
        raise DataError(f"test sites {some(test_sites)} are given, but data.split is {by!r}: set it to 'site'")
    subsets = {entry.subset for entry in entries}
    if len(subsets) == 2 and "" in subsets:
        raise DataError(f"some slices lie in a {max(subsets)} folder and some in none; name folders for all of them")
    rng = np.random.default_rng(seed)
    trained = [entry.positives > 0 or slices == "all" for entry in entries]
    if by == "slice":
        train, val, test, notes = _split_slices(entries, trained, rng)
        counts = [len(part) or len(entries) for part in (train, val, test)]
    else:
        train, val, test, notes = _split_patients(entries, by, rng, test_sites)
        counts = [len(part) for part in (train, val, test)]
        train, val = ([index for index in part if trained[index]] for part in (train, val))
    for part, indices, count in zip(("training", "validation", "test"), (train, val, test), counts, strict=True):
        # Under "all", a validation set without tumour is allowed: only early stopping becomes meaningless.
        if not indices or (part != "validation" and not any(entries[index].positives for index in indices)):
            tumours = sum(entry.positives > 0 for entry in entries)
            raise DataError(
                f"0 of {count} {part} masks contain tumour (data.split={by}, {tumours} of all {len(entries)} do); "
                f"{'try another data.split_seed' if tumours else 'are these the masks?'}"
            )
    if not any(entries[index].positives for index in val):
        notes.append(f"0 of {len(val)} validation masks contain tumour: early stopping cannot judge the segmentation")
    parts = [tuple(sorted(part)) for part in (train, val, test)]
    # Every volume has slices without tumour, above and below it.
    whole = by != "slice" and not all(entries[index].positives for index in test)
    if by != "slice":
        people = [{_person(entries[index]) for index in part} for part in parts]
        assert len(set().union(*people)) == sum(map(len, people)), "a patient is on two sides"
        if not whole:
            notes.append("the test holds slices with tumour only: no patient's volume is whole, none is scored")
    train_part, val_part, test_part = parts
    return Split(by, train_part, val_part, test_part, tuple(notes), whole_volumes=whole)


Parts = tuple[list[int], list[int], list[int], list[str]]


def _split_slices(entries: Sequence[Entry], trained: Sequence[bool], rng: np.random.Generator) -> Parts:
    def by_name(indices: Iterable[int]) -> list[int]:
        return sorted(indices, key=lambda index: entries[index].name)

    order = by_name(index for index in range(len(entries)) if trained[index])
    if _is_fixed(entries):
        rest = [index for index in order if entries[index].subset == "train"]
        test = [index for index in order if entries[index].subset == "test"]
    else:
        shuffled = [order[position] for position in rng.permutation(len(order))]
        count = len(order) * 8 // 10
        rest, test = by_name(shuffled[:count]), shuffled[count:]
    count = len(rest) - max(len(rest) * 2 // 10, 1)
    people = [{_person(entries[index]) for index in part} - {""} for part in (rest, test)]
    if unnamed := sum(not entry.patient for entry in entries):
        leak = f"{unnamed} slices name no patient, so patients may be on both sides and scores too high"
    elif shared := people[0] & people[1]:
        leak = f"{len(shared)} of {len(people[0] | people[1])} patients are on both sides, so that scores are too high"
        leak += "; --data.split=patient is honest"
    else:
        leak = "no test patient is in training or validation, which share patients"
    note = f"split by slice, as the reference does: {leak}"
    return rest[:count], rest[count:], [index for index in test if entries[index].positives], [note]


def _split_patients(entries: Sequence[Entry], by: str, rng: np.random.Generator, test_sites: Sequence[str]) -> Parts:
    site_of = _sites(entries, by)
    notes = []
    if _is_fixed(entries):
        test_people = _fixed_test(entries, site_of, by)
    elif by == "site":
        chosen = _choose_sites(site_of, test_sites)
        test_people = {person for person, site in site_of.items() if site in chosen}
        share = f"{len(test_people)} of {len(site_of)} patients"
        notes.append(f"tested on whole sites: {some(chosen)} with {share}")
    else:
        test_people = _draw(site_of, round(0.2 * len(site_of)), rng)
    rest = {person: site for person, site in site_of.items() if person not in test_people}
    share_of_rest = 0.16 * len(site_of) if by == "patient" and not _is_fixed(entries) else 0.2 * len(rest)
    val_people = _draw(site_of, round(share_of_rest), rng, taken=test_people)
    if not test_people or not val_people:
        raise DataError(
            f"{len(site_of)} patients at {len(set(site_of.values()))} sites are too few for training, validation and "
            f"test by {by}, which takes three patients of one site at least; use --data.split=slice"
        )
    for site in sorted(set(rest.values())):
        people = [person for person, at in site_of.items() if at == site]
        if len(people) == 1:
            notes.append(f"site {site or '(unnamed)'} has one patient, {people[0]}, who is in training")
    train: list[int] = []
    val: list[int] = []
    test: list[int] = []
    for index, entry in enumerate(entries):
        person = _person(entry)
        (test if person in test_people else val if person in val_people else train).append(index)
    return train, val, test, notes


def _is_fixed(entries: Sequence[Entry]) -> bool:
    """Whether folders fix the test; a training folder alone is split like any other set."""
    return any(entry.subset == "test" for entry in entries)


def _person(entry: Entry) -> str:
    """Two scans of one person (`TCGA_<site>_<patient>_<date>`) must stay on one side."""
    return _undated(entry.patient)


@functools.lru_cache(4096)  # called several times per slice
def _undated(patient: str) -> str:
    return _DATED.sub(r"\1", patient)


def _sites(entries: Sequence[Entry], by: str) -> dict[str, str]:
    """Returns the site of each patient, in order of the patients' names."""
    if unnamed := [entry.name for entry in entries if not entry.patient]:
        raise DataError(
            f"{len(unnamed)} slices name no patient: {some(unnamed, 3)}; expected names like "
            f"TCGA_CS_4941_19960909_12 or <patient>_<number>; use --data.split=slice"
        )
    found: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        found[_person(entry)].add(entry.site)
    for person, sites in found.items():
        if len(sites) > 1:
            raise DataError(f"patient {person} is at several sites: {some(sorted(sites))}")
        if by == "site" and "" in sites:
            raise DataError(f"patient {person} has no site in its name; use --data.split=patient")
    return {person: min(found[person]) for person in sorted(found)}


def _fixed_test(entries: Sequence[Entry], site_of: Mapping[str, str], by: str) -> set[str]:
    train, test = ({_person(entry) for entry in entries if entry.subset == part} for part in ("train", "test"))
    if both := sorted(train & test):
        raise DataError(
            f"{len(both)} patients have slices in the training and in the test folder: {some(both)}; split the folders "
            "by patient, or use --data.split=slice"
        )
    if by == "site" and (both := sorted({site_of[name] for name in train} & {site_of[name] for name in test})):
        raise DataError(f"{len(both)} sites are in the training and in the test folder: {some(both)}")
    return test


def _draw(site_of: Mapping[str, str], count: int, rng: np.random.Generator, taken: Set[str] = frozenset()) -> set[str]:
    """Draws `count` patients who are not in `taken`, in proportion to the sizes of the sites (largest remainder).

    At least one patient of each site stays undrawn.
    """
    free: dict[str, list[str]] = defaultdict(list)
    sizes: dict[str, int] = defaultdict(int)
    for person in sorted(site_of):
        sizes[site_of[person]] += 1
        if person not in taken:
            free[site_of[person]].append(person)
    rooms = {site: len(free[site]) - 1 for site in sorted(free) if len(free[site]) > 1}
    count = min(max(count, 1), sum(rooms.values()))
    total = sum(sizes[site] for site in rooms)
    quotas = {site: min(count * sizes[site] // total, room) for site, room in rooms.items()}
    while sum(quotas.values()) < count:
        open_sites = [site for site, room in rooms.items() if quotas[site] < room]
        quotas[max(open_sites, key=lambda site: count * sizes[site] / total - quotas[site])] += 1
    return {
        free[site][position]
        for site, quota in quotas.items()
        for position in rng.permutation(len(free[site]))[:quota]
    }  # fmt: skip


def _choose_sites(site_of: Mapping[str, str], wanted: Sequence[str]) -> list[str]:
    counts: dict[str, int] = defaultdict(int)
    for site in site_of.values():
        counts[site] += 1
    known = sorted(counts)
    if unknown := sorted(set(wanted) - set(known)):
        raise DataError(f"no patients at test site {some(unknown)}; sites here: {some(known, 30)} (data.test_sites)")
    if wanted:
        chosen = sorted(set(wanted))
    else:
        # For each sum of patients over some sites: the fewest sites with that sum.
        reach: dict[int, tuple[str, ...]] = {0: ()}
        for site in known:
            for patients, sites in list(reach.items()):
                better = (*sites, site)
                old = reach.get(patients + counts[site])
                if old is None or len(better) < len(old):
                    reach[patients + counts[site]] = better
        reach = {patients: sites for patients, sites in reach.items() if 0 < len(sites) < len(known)}
        if not reach:
            raise DataError(f"only one site, {some(known)}: it cannot be split by site; use --data.split=patient")
        chosen = sorted(reach[min(reach, key=lambda patients: abs(patients - 0.2 * len(site_of)))])
    if len(chosen) == len(known):
        raise DataError(f"all sites ({some(known)}) are test sites, none is left to train on (data.test_sites)")
    return chosen
