"""`python -m experiments.predict --run_dir RUN --infer.images FOLDER`: masks of images that belong to no data set.

For `a.tif` it writes, at the size of the image, `a_probability.png` (grey, 255 = certain tumour), `a_mask.png` (0 and
255) and `a_overlay.png` (outline of the prediction, and of the truth where masks are given), then `contact_sheet.png`
and `predictions.csv`. Files are read, predicted and written a batch at a time. A file that cannot be used is reported
and the others are done. From Python: `load(run_dir)(images)`.
"""

import csv
import dataclasses
import io
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.images import read_mask
from data_pipeline.source import DataError
from experiments.config import ConfigError, InferConfig
from experiments.folder import Picture, find_pictures, read_picture

if TYPE_CHECKING:
    from rich.console import Console

    from experiments.build import Run
    from experiments.pictures import Case
    from experiments.predictor import Predictor

SHEET_TILES = 24
WRITERS = 4
MOST_PENDING_PIXELS = 1 << 25
"""Large images make smaller batches, so that memory stays bounded (4 bytes a pixel and channel, and the image)."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one image.

    Attributes:
      picture: the file.
      error: why it failed, empty if it did not.
      numeric: whether it failed because the network's output is no number.
      tumour_pixels: predicted pixels.
      pixels: of the image.
      peak: the highest probability.
      dice: thresholded, where a true mask is given; 1 where both masks are empty.
      notes: how the image was converted.
      case: a small picture for the contact sheet, where this image is on it.
    """

    picture: Picture
    error: str = ""
    numeric: bool = False
    tumour_pixels: int = 0
    pixels: int = 0
    peak: float = 0.0
    dice: float | None = None
    notes: tuple[str, ...] = ()
    case: "Case | None" = None


def load(run_dir: str | Path, *, batch_size: int | None = None) -> "Predictor":
    """Loads the best checkpoint of a run as a function from images to probabilities.

    Args:
      run_dir: the run directory.
      batch_size: images predicted at once; default `infer.batch_size` of the run.

    Returns:
      A `Predictor`: `uint8` or float arrays with values 0..255, `[H, W, C]`, `[B, H, W, C]` or a list of `[H, W, C]`,
      to `float32` probabilities of the same sizes with one channel a class.

    Raises:
      ConfigError: there is no run.
      CheckpointError: it has no checkpoint, or a damaged one.
    """
    from experiments.build import load_run

    return predictor(load_run(run_dir), batch_size=batch_size)


def predictor(run: "Run", *, batch_size: int | None = None) -> "Predictor":
    """Returns the predictor of a loaded run; see `load`."""
    from experiments.build import image_shape
    from experiments.predictor import Predictor

    batch_size = batch_size or run.config.infer.batch_size
    return Predictor(run.model, run.params, image_shape=image_shape(run.config), batch_size=batch_size)


def predict_files(
    predict: "Predictor",
    pictures: Sequence[Picture],
    *,
    output_dir: Path,
    merged_dir: Path,
    options: InferConfig,
    mask_threshold: int | None = None,
    advance: Callable[[], object] = lambda: None,
) -> Iterator[Outcome]:
    """Predicts files and writes their pictures, a batch at a time.

    Args:
      predict: the network.
      pictures: the files and the names of their output.
      output_dir: for probability maps and masks.
      merged_dir: for overlays.
      options: blur, threshold, whether masks are binarized.
      mask_threshold: for true masks, see `data_pipeline.images.read_mask`.
      advance: called after each file.

    Yields:
      An outcome a file, in order.

    Raises:
      OSError: the output cannot be written.
    """
    places = np.linspace(0, len(pictures) - 1, SHEET_TILES if pictures else 0)  # a process may have none
    chosen = {pictures[i].output for i in places.round().astype(int)}

    def finish(item: _Read, probabilities: np.ndarray) -> Outcome:
        return _write(
            item, predict.resize_back(probabilities, item.image.shape[:2]), output_dir, merged_dir, options, chosen
        )

    def outcomes(batch: list[_Read], output: Any, pool: ThreadPoolExecutor) -> Iterator[Outcome]:
        ready = [item for item in batch if not item.error]
        probabilities = iter(np.asarray(output)[: len(ready)] if ready else ())
        written = iter(list(pool.map(finish, ready, probabilities)))
        for item in batch:
            advance()
            yield Outcome(item.picture, error=item.error) if item.error else next(written)

    # The device computes a batch while the one before is written.
    with ThreadPoolExecutor(WRITERS) as pool:
        pending: tuple[list[_Read], Any] | None = None
        for batch in _batches((_read(p, predict.channels, mask_threshold) for p in pictures), predict.batch_size):
            images = [item.image for item in batch if not item.error]
            started = batch, predict.start(images) if images else None
            if pending:
                yield from outcomes(*pending, pool)
            pending = started
        if pending:
            yield from outcomes(*pending, pool)


@dataclasses.dataclass(frozen=True)
class _Read:
    picture: Picture
    image: np.ndarray
    truth: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    error: str = ""


def _read(picture: Picture, channels: int, mask_threshold: int | None) -> _Read:
    nothing = np.zeros((0, 0, channels), np.uint8)
    if picture.problem:
        return _Read(picture, nothing, error=picture.problem)
    try:
        image, notes = read_picture(picture.path, channels)
        truth = None
        if picture.mask:
            truth = read_mask(picture.mask, threshold=mask_threshold)[:, :, 0].astype(bool)
            if truth.shape != image.shape[:2]:
                sizes = f"image of {image.shape[0]}x{image.shape[1]} but mask of {truth.shape[0]}x{truth.shape[1]}"
                raise DataError(f"{sizes} pixels (height x width): {picture.mask}")
    except DataError as error:
        return _Read(picture, nothing, error=str(error))
    return _Read(picture, image, truth, notes)


def _batches(items: Iterable[_Read], batch_size: int) -> Iterator[list[_Read]]:
    """Groups files; files that failed ride along, so that outcomes keep the order of the files."""
    batch: list[_Read] = []
    for item in items:
        batch.append(item)
        ready = [other.image.shape[0] * other.image.shape[1] for other in batch if not other.error]
        if len(ready) == batch_size or len(batch) == 4 * batch_size or sum(ready) > MOST_PENDING_PIXELS:
            yield batch
            batch = []
    if batch:
        yield batch


def _write(
    item: _Read, probabilities: np.ndarray, output_dir: Path, merged_dir: Path, options: InferConfig, chosen: set[str]
) -> Outcome:
    """Writes the pictures of one image; `probabilities` has its size, `[H, W, K]`."""
    from scipy.ndimage import gaussian_filter

    from experiments.pictures import Case, overlay, save_png, thumbnail

    if not np.isfinite(probabilities).all():
        return Outcome(item.picture, error=f"the network's output is not finite: {item.picture.path}", numeric=True)
    if options.blur:
        probabilities = gaussian_filter(probabilities, (options.blur, options.blur, 0), mode="nearest")
    masks = probabilities > options.threshold
    prediction = np.asarray(masks.any(-1))
    save_png(overlay(item.image, prediction, item.truth), merged_dir / f"{item.picture.output}_overlay.png")
    for index, suffix in enumerate(_suffixes(probabilities.shape[2])):
        grey = np.rint(255 * probabilities[:, :, index]).astype(np.uint8)
        save_png(grey, output_dir / f"{item.picture.output}_probability{suffix}.png")
        if options.binarize:
            save_png(masks[:, :, index] * np.uint8(255), output_dir / f"{item.picture.output}_mask{suffix}.png")
    dice = None if item.truth is None else _dice(prediction, item.truth)
    case = Case(item.picture.path.name, item.image, prediction, item.truth, dice)
    return Outcome(
        item.picture,
        tumour_pixels=int(prediction.sum()),
        pixels=prediction.size,
        peak=float(probabilities.max()),
        dice=dice,
        notes=item.notes,
        case=thumbnail(case) if item.picture.output in chosen else None,
    )


def _suffixes(classes: int) -> list[str]:
    return [""] if classes == 1 else [f"_{index}" for index in range(classes)]


def _dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    total = int(prediction.sum()) + int(truth.sum())
    return 2 * int((prediction & truth).sum()) / total if total else 1.0


def predict_run(run: "Run", *, share: tuple[int, int] = (0, 1), console: "Console | None" = None) -> list[Outcome]:
    """Predicts the images that `run.config.infer` names, writes everything and prints a table.

    Args:
      run: of `build.load_run`.
      share: (index, count) of the processes that divide the files among them, each with a contact sheet and a
        `predictions.csv` of its own.
      console: where to print; default standard output.

    Returns:
      An outcome a file of this share. The caller decides what failures mean (see `raise_failures`).

    Raises:
      ConfigError: no images are named, or the output exists or lies where the images lie.
      DataError: the folder is missing or holds no image.
    """
    from experiments import report
    from experiments.pictures import contact_sheet
    from experiments.rundir import write_atomically

    options, out = run.config.infer, console or report.console()
    images, pictures, notes = named_pictures(options)
    name = images.resolve().name if images.is_dir() else images.stem
    output_dir = Path(options.output_dir or run.directory / "predictions" / name)
    merged_dir = Path(options.merged_dir or output_dir)
    rank, count = share
    suffix = f"_{rank}" if rank else ""
    sheet, listing = output_dir / f"contact_sheet{suffix}.png", output_dir / f"predictions{suffix}.csv"
    mine, classes = pictures[rank::count], run.config.model.num_classes
    planned = [sheet, listing, *_planned(mine, output_dir, merged_dir, classes, options.binarize)]
    _check_output((output_dir, merged_dir), images, options, planned)
    for note in notes:
        out.print(f"note: {note}", markup=False, soft_wrap=True)
    predict = predictor(run)
    started = time.monotonic()
    with report.progress("predicting", len(mine), to=out) as advance:
        outcomes = list(
            predict_files(
                predict,
                mine,
                output_dir=output_dir,
                merged_dir=merged_dir,
                options=options,
                mask_threshold=run.config.data.mask_threshold,
                advance=advance,
            )
        )
    seconds = time.monotonic() - started
    trained_on = run.manifest["dataset"]["title"]
    cases = [outcome.case for outcome in outcomes if outcome.case]
    if cases:
        title = f"{len(cases)} of {len(mine)} images of {images}. The network was trained on: {trained_on}"
        contact_sheet(cases, sheet, title=title)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(listing, _csv(outcomes))
    _print(outcomes, output_dir, seconds, out)
    return outcomes


def named_pictures(options: InferConfig) -> tuple[Path, list[Picture], list[str]]:
    """Returns the folder or file that `infer.images` names, its pictures with `infer.masks`, and notes.

    Raises:
      ConfigError: it names none.
      DataError: as `find_pictures`.
    """
    if options.images is None:
        raise ConfigError("infer.images is not set: name an image or a folder of images, --infer.images=FOLDER")
    return Path(options.images), *find_pictures(Path(options.images), Path(options.masks) if options.masks else None)


def _planned(
    pictures: Sequence[Picture], output_dir: Path, merged_dir: Path, classes: int, binarize: bool
) -> Iterator[Path]:
    for picture in pictures:
        yield merged_dir / f"{picture.output}_overlay.png"
        for suffix in _suffixes(classes):
            yield output_dir / f"{picture.output}_probability{suffix}.png"
            if binarize:
                yield output_dir / f"{picture.output}_mask{suffix}.png"


def _check_output(folders: Sequence[Path], images: Path, options: InferConfig, planned: Sequence[Path]) -> None:
    """Refuses to write where images are read, or over anything, before a device is touched."""
    read = [images if images.is_dir() else images.parent]
    read += [Path(options.masks)] if options.masks else []
    for folder in folders:
        if folder.resolve() in [place.resolve() for place in read]:
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
        writer.writerow([o.picture.path.name, o.picture.output, *figures, o.error])
    return text.getvalue()


def _print(outcomes: Sequence[Outcome], output_dir: Path, seconds: float, out: "Console") -> None:
    from experiments import report

    ok = [outcome for outcome in outcomes if not outcome.error]
    for note, number in Counter(note for outcome in ok for note in outcome.notes).items():
        out.print(f"note: {number} {'image' if number == 1 else 'images'} {note}", markup=False, soft_wrap=True)
    rows: list[list[Any]] = [["ok", len(ok)], ["failed", len(outcomes) - len(ok)]]
    rows += [["tumour predicted in", sum(outcome.tumour_pixels > 0 for outcome in ok)]]
    if scores := [outcome.dice for outcome in ok if outcome.dice is not None]:
        rows += [[f"mean Dice of {len(scores)} images with a mask", f"{np.mean(scores):.4f}"]]
    rows += [["seconds", f"{seconds:.1f}"], ["images a second", f"{len(ok) / max(seconds, 1e-9):.3g}"]]
    report.table(f"Predictions in {output_dir}", ["", "value"], rows, to=out)


def raise_failures(outcomes: Sequence[Outcome]) -> None:
    """Raises one error that lists every failed file; does nothing if all are done.

    Raises:
      NonFiniteError: the network gave an output that is no number.
      DataError: files could not be used.
    """
    failed = [outcome for outcome in outcomes if outcome.error]
    if not failed:
        return
    lines = "".join(f"\n  {outcome.error}" for outcome in failed)
    message = f"{len(outcomes) - len(failed)} ok, {len(failed)} failed:{lines}"
    if any(outcome.numeric for outcome in failed):
        from experiments.trainer import NonFiniteError

        raise NonFiniteError(message)
    raise DataError(message)


def main(argv: Sequence[str], *, program: str = "predict") -> int:
    """Predicts the images that `--infer.images` names with the run that `--run_dir` names."""
    from experiments.cli import parse
    from experiments.identity import run_directory

    config = parse(argv, program=program)
    named_pictures(config.infer)  # a wrong path is told before jax starts
    import jax

    from experiments import build
    from experiments.processes import start_processes

    start_processes(config)
    run = build.load_run(run_directory(config), config)
    raise_failures(predict_run(run, share=(jax.process_index(), jax.process_count())))
    return 0


if __name__ == "__main__":
    from experiments.cli import run_program

    sys.exit(run_program(main))
