"""Predicts image files a batch at a time: reads them, writes their pictures, a contact sheet and a table."""

import csv
import dataclasses
import io
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from scipy.ndimage import gaussian_filter

from data_pipeline.console import progress
from data_pipeline.images import read_mask
from data_pipeline.source import DataError
from experiments import build, console
from experiments.build import Run
from experiments.config import Config, ConfigError, InferConfig
from experiments.image_folder import ImageFile, read_for_network, requested_images
from experiments.plots import Case, contact_sheet, overlay, save_png, thumbnail
from experiments.predictor import Predictor, predictor_of_run
from experiments.processes import start_processes
from experiments.run_directory import run_directory, write_atomically
from experiments.training import NonFiniteError

SHEET_CASES = 24
WRITERS = 4
MAX_BATCH_PIXELS = 1 << 25
"""Large images make smaller batches, so that memory stays bounded (4 bytes per pixel and channel, and the image)."""
MINI_TEST = 10


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of one image."""

    file: ImageFile
    error: str = ""  # why it failed, if it did
    numeric: bool = False  # it failed because the network's output is not finite
    tumour_pixels: int = 0
    pixels: int = 0
    peak: float = 0.0  # the highest probability
    dice: float | None = None  # if a true mask is given; 1 if both masks are empty
    notes: tuple[str, ...] = ()  # how the image was converted
    case: Case | None = None  # a thumbnail, if this image is on the contact sheet


class OutputFolders(NamedTuple):
    """Where pictures go: probability maps and masks to `output_dir`, overlays to `merged_dir`."""

    output_dir: Path
    merged_dir: Path

    def paths(self, name: str, classes: int, *, binarize: bool) -> tuple[Path, list[Path], list[Path]]:
        """Returns the overlay, and the probability maps and masks of all classes."""
        suffixes = [""] if classes == 1 else [f"_{index}" for index in range(classes)]
        probabilities = [self.output_dir / f"{name}_probability{suffix}.png" for suffix in suffixes]
        masks = [self.output_dir / f"{name}_mask{suffix}.png" for suffix in suffixes if binarize]
        return self.merged_dir / f"{name}_overlay.png", probabilities, masks


@dataclasses.dataclass(frozen=True)
class _Loaded:
    file: ImageFile
    image: np.ndarray
    truth: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    error: str = ""


def predict_files(
    predictor: Predictor,
    files: Sequence[ImageFile],
    folders: OutputFolders,
    *,
    options: InferConfig,
    mask_threshold: int | None = None,
    advance: Callable[[], object] = lambda: None,
) -> Iterator[Outcome]:
    """Predicts files, writes their pictures and yields one outcome per file, in order, a batch at a time.

    Args:
      predictor: the network.
      files: the images and the names of their output.
      folders: for the pictures.
      options: blur, threshold, whether masks are binarized.
      mask_threshold: for true masks, see `data_pipeline.images.read_mask`.
      advance: called after each file.
    """
    chosen = np.linspace(0, len(files) - 1, SHEET_CASES if files else 0)  # a process may have no files
    shown = {files[i].output for i in chosen.round().astype(int)}

    def finish(item: _Loaded, probabilities: np.ndarray) -> Outcome:
        resized = predictor.resize_back(probabilities, item.image.shape[:2])
        return _write_pictures(item, resized, folders, options, on_sheet=item.file.output in shown)

    def start(batch: list[_Loaded]) -> tuple[list[_Loaded], Any]:
        images = [item.image for item in batch if not item.error]
        return batch, predictor.start(images) if images else ()

    loaded = (_load(file, predictor.channels, mask_threshold) for file in files)
    batches = itertools.chain(map(start, _batches(loaded, predictor.batch_size)), [([], ())])
    with ThreadPoolExecutor(WRITERS) as pool:
        # In pairs, so that the device computes a batch while the pictures of the previous one are written.
        for (batch, output), _ in itertools.pairwise(batches):
            ready = [item for item in batch if not item.error]
            written = iter(list(pool.map(finish, ready, np.asarray(output)[: len(ready)])))
            for item in batch:
                advance()
                yield Outcome(item.file, error=item.error) if item.error else next(written)


def _load(file: ImageFile, channels: int, mask_threshold: int | None) -> _Loaded:
    nothing = np.zeros((0, 0, channels), np.uint8)
    if file.problem:
        return _Loaded(file, nothing, error=file.problem)
    try:
        image, notes = read_for_network(file.path, channels)
        truth = None
        if file.mask:
            truth = read_mask(file.mask, threshold=mask_threshold)[:, :, 0].astype(bool)
            if truth.shape != image.shape[:2]:
                sizes = f"image of {image.shape[0]}x{image.shape[1]} but mask of {truth.shape[0]}x{truth.shape[1]}"
                raise DataError(f"{sizes} pixels (height x width): {file.mask}")
    except DataError as error:
        return _Loaded(file, nothing, error=str(error))
    return _Loaded(file, image, truth, notes)


def _batches(items: Iterable[_Loaded], batch_size: int) -> Iterator[list[_Loaded]]:
    """Groups files; files that failed stay among them, so that outcomes keep the order of the files."""
    batch: list[_Loaded] = []
    for item in items:
        batch.append(item)
        ready = [other.image.shape[0] * other.image.shape[1] for other in batch if not other.error]
        if len(ready) == batch_size or len(batch) == 4 * batch_size or sum(ready) > MAX_BATCH_PIXELS:
            yield batch
            batch = []
    if batch:
        yield batch


def _write_pictures(
    item: _Loaded, probabilities: np.ndarray, folders: OutputFolders, options: InferConfig, *, on_sheet: bool
) -> Outcome:
    """Writes the pictures of one image; `probabilities` has its size, `[H, W, K]`."""
    if not np.isfinite(probabilities).all():
        return Outcome(item.file, error=f"the network's output is not finite: {item.file.path}", numeric=True)
    if options.blur:
        probabilities = gaussian_filter(probabilities, (options.blur, options.blur, 0), mode="nearest")
    classes = probabilities.shape[2]
    masks = probabilities > options.threshold
    prediction = np.asarray(masks.any(-1))
    overlay_path, maps, mask_paths = folders.paths(item.file.output, classes, binarize=options.binarize)
    save_png(overlay(item.image, prediction, item.truth), overlay_path)
    for index, path in enumerate(maps):
        save_png(np.rint(255 * probabilities[:, :, index]).astype(np.uint8), path)
    for index, path in enumerate(mask_paths):
        save_png(masks[:, :, index] * np.uint8(255), path)
    dice = None if item.truth is None else _dice(prediction, item.truth)
    case = Case(item.file.path.name, item.image, prediction, item.truth, dice)
    return Outcome(
        item.file,
        tumour_pixels=int(prediction.sum()),
        pixels=prediction.size,
        peak=float(probabilities.max()),
        dice=dice,
        notes=item.notes,
        case=thumbnail(case) if on_sheet else None,
    )


def _dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    total = int(prediction.sum()) + int(truth.sum())
    return 2 * int((prediction & truth).sum()) / total if total else 1.0


def predict(config: Config) -> None:
    """Predicts the images of a configuration; several processes divide them. Raises as `raise_failures`."""
    start_processes(config)
    run = build.load_run(run_directory(config), config)
    raise_failures(predict_run(run, share=(jax.process_index(), jax.process_count())))


def predict_run(run: Run, *, share: tuple[int, int] = (0, 1), to: Console | None = None) -> list[Outcome]:
    """Predicts the images of `run.config.infer`, writes all output and prints a table.

    Args:
      run: from `build.load_run`.
      share: (index, count) of the processes that divide the files; each writes its own contact sheet and table.
      to: the console; default standard output.

    Returns:
      One outcome per file of this share; see `raise_failures`.

    Raises:
      ConfigError: no images are named, or the output exists or would go where the images are.
      DataError: the folder is missing or holds no image.
    """
    options, out = run.config.infer, to or console.console()
    images, found, notes = requested_images(options)
    name = images.resolve().name if images.is_dir() else images.stem
    output_dir = Path(options.output_dir or run.directory / "predictions" / name)
    folders = OutputFolders(output_dir, Path(options.merged_dir or output_dir))
    rank, count = share
    suffix = f"_{rank}" if rank else ""
    sheet, listing = output_dir / f"contact_sheet{suffix}.png", output_dir / f"predictions{suffix}.csv"
    files, planned = found[rank::count], [sheet, listing]
    for file in files:
        one, maps, masks = folders.paths(file.output, run.config.model.num_classes, binarize=options.binarize)
        planned += [one, *maps, *masks]
    _check_output(folders, images, options, planned)
    for note in notes:
        out.print(f"note: {note}", markup=False, soft_wrap=True)
    predictor = predictor_of_run(run)
    started = time.monotonic()
    with progress("predicting", len(files), to=out) as advance:
        threshold = run.config.data.mask_threshold
        outcomes = list(
            predict_files(predictor, files, folders, options=options, mask_threshold=threshold, advance=advance)
        )
    seconds = time.monotonic() - started
    cases = [outcome.case for outcome in outcomes if outcome.case]
    if cases:
        trained_on = run.manifest["dataset"]["title"]
        title = f"{len(cases)} of {len(files)} images of {images}. The network was trained on: {trained_on}"
        contact_sheet(cases, sheet, title=title)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(listing, _csv(outcomes))
    _print_outcomes(outcomes, output_dir, seconds, out)
    return outcomes


def _check_output(folders: OutputFolders, images: Path, options: InferConfig, planned: Sequence[Path]) -> None:
    """Refuses to write where images are read, or over existing files, before a device is used."""
    inputs = [images if images.is_dir() else images.parent] + ([Path(options.masks)] if options.masks else [])
    for folder in folders:
        if folder.resolve() in [place.resolve() for place in inputs]:
            raise ConfigError(f"the output would go to {folder}, where images are read: name another infer.output_dir")
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"the output would go to {folder}, which is a file: name another infer.output_dir")
    existing = [] if options.overwrite else [path for path in planned if path.exists()]
    if existing:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise ConfigError(
            f"{existing[0]}{more} exist already: name another --infer.output_dir, or allow it with --infer.overwrite"
        )


def _csv(outcomes: Sequence[Outcome]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "output", "tumour_pixels", "pixels", "highest_probability", "dice", "error"])
    for o in outcomes:
        figures = ["", "", "", ""] if o.error else [o.tumour_pixels, o.pixels, f"{o.peak:.6f}", o.dice]
        writer.writerow([o.file.path.name, o.file.output, *figures, o.error])
    return text.getvalue()


def _print_outcomes(outcomes: Sequence[Outcome], output_dir: Path, seconds: float, out: Console) -> None:
    ok = [outcome for outcome in outcomes if not outcome.error]
    for note, number in Counter(note for outcome in ok for note in outcome.notes).items():
        out.print(f"note: {number} {'image' if number == 1 else 'images'} {note}", markup=False, soft_wrap=True)
    rows: list[list[Any]] = [["ok", len(ok)], ["failed", len(outcomes) - len(ok)]]
    rows += [["tumour predicted in", sum(outcome.tumour_pixels > 0 for outcome in ok)]]
    if scores := [outcome.dice for outcome in ok if outcome.dice is not None]:
        rows += [[f"mean Dice of {len(scores)} images with a mask", f"{np.mean(scores):.4f}"]]
    rows += [["seconds", f"{seconds:.1f}"], ["images per second", f"{len(ok) / max(seconds, 1e-9):.3g}"]]
    console.table(f"Predictions in {output_dir}", ["", "value"], rows, to=out)


def raise_failures(outcomes: Sequence[Outcome]) -> None:
    """Raises one NonFiniteError or DataError that lists every failed file, if there are any."""
    failed = [outcome for outcome in outcomes if outcome.error]
    if not failed:
        return
    lines = "".join(f"\n  {outcome.error}" for outcome in failed)
    message = f"{len(outcomes) - len(failed)} ok, {len(failed)} failed:{lines}"
    raise NonFiniteError(message) if any(outcome.numeric for outcome in failed) else DataError(message)


def predict_mini_test(run: Run) -> None:
    """Writes ten test slices with tumour, evenly spread, as PNG into `mini_test/` and predicts them as a folder."""
    data = build.dataset(run.config, progress=False)
    index = {entry.name: i for i, entry in enumerate(data.entries)}
    tumour = [i for name in run.manifest["split"]["test"] if data.entries[i := index[name]].positives]
    directory = run.directory / "mini_test"
    for k in np.linspace(0, len(tumour) - 1, min(MINI_TEST, len(tumour))).round().astype(int):
        example, name = data[tumour[k]], f"{data.entries[tumour[k]].name}.png"
        image = example["image"] if example["image"].shape[2] > 1 else example["image"][:, :, 0]
        save_png(image, directory / "image" / name)
        save_png(example["mask"][:, :, 0] * np.uint8(255), directory / "mask" / name)
    options = dataclasses.replace(
        run.config.infer,
        images=str(directory / "image"),
        masks=str(directory / "mask"),
        output_dir=str(run.directory / "predictions" / "mini_test"),
        merged_dir=None,
        overwrite=True,  # only this function writes files of these ten names there
    )
    config = dataclasses.replace(run.config, infer=options)
    raise_failures(predict_run(dataclasses.replace(run, config=config)))
