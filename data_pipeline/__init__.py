"""Files in, numpy arrays out: the sources of slices, their preparation, splitting and batching."""

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.folders import Pair, find_pairs, open_folders
from data_pipeline.kaggle import open_kaggle
from data_pipeline.source import DataError, Record, Source, UsageError

__all__ = ["DataError", "Record", "Source", "open_source"]


def open_source(
    root: str | Path | None,
    *,
    pairs: Sequence[Pair] | None = None,
    size: tuple[int, int] | None,
    channels: int = 3,
    resize: bool | None = None,
    mask_threshold: int | None = None,
    phantom_patients: int = 48,
    phantom_seed: int = 0,
) -> Source:
    """Opens whatever the configuration names.

    Args:
      root: a `kaggle_3m` tree or zip, or a folder that holds `{train,test}/{image,mask}` or `{image,mask}`.
      pairs: instead of a root: (subset, image folder, mask folder), see `data_pipeline.folders.open_folders`.
      size: (height, width) of every slice; None: whatever the files have (synthetic slices: 256x256).
      channels: channels of an image.
      resize: bring other sizes to `size`; None: not for `kaggle_3m` (which has one size), but for folders.
      mask_threshold: grey value above which a mask is tumour; None: masks hold 0 and 255 only.
      phantom_patients: without root and pairs: patients of the synthetic set.
      phantom_seed: and its seed.

    Raises:
      UsageError: a number out of its range, or one that synthetic slices cannot have.
      DataError: an explicit place that is missing or not usable; the synthetic set never stands in for it.
    """
    _check_ranges(size, mask_threshold, phantom_patients, phantom_seed)
    if root is not None and pairs:
        raise DataError(f"both a root ({root}) and image and mask folders are given; give one of them")
    if root is None and not pairs:
        from data_pipeline.phantom import open_phantom

        if channels != 3:
            raise UsageError(f"synthetic slices have 3 channels, not {channels} (model.image_channels)")
        return open_phantom(patients=phantom_patients, seed=phantom_seed, size=size or (256, 256))
    if root is not None:
        if str(root) == "" or not Path(root).exists():
            raise DataError(f"no such file or folder: {str(root)!r} (data.root)")
        pairs = find_pairs(root) if Path(root).is_dir() else None
    if pairs:
        return open_folders(
            pairs,
            size=size,
            channels=channels,
            resize=True if resize is None else resize,
            mask_threshold=mask_threshold,
        )
    assert root is not None
    return open_kaggle(root, size=size, channels=channels, resize=bool(resize), mask_threshold=mask_threshold)


def _check_ranges(
    size: tuple[int, int] | None, mask_threshold: int | None, phantom_patients: int, phantom_seed: int
) -> None:
    if size is not None and not all(1 <= side <= 1 << 16 for side in size):
        raise UsageError(f"size {size[0]}x{size[1]}: height and width must be from 1 to {1 << 16} pixels")
    if mask_threshold is not None and not 0 <= mask_threshold <= 254:
        raise UsageError(f"mask_threshold={mask_threshold}: must be a grey value from 0 to 254")
    if phantom_patients < 3:
        raise UsageError(f"{phantom_patients} synthetic patients: at least 3, one each for training, validation, test")
    if phantom_seed < 0:
        raise UsageError(f"seed={phantom_seed}: must be at least 0")
