"""Tiny data sets of random pixels in the layouts that the sources read; no patient is in them."""

import dataclasses
import hashlib
import io
import os
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.source import Record, Source

PATIENTS = {
    "TCGA_CS_0001_20000101": 4,
    "TCGA_CS_0002_20000102": 3,
    "TCGA_DU_0003_20000103": 11,
    "TCGA_DU_0004_20000104": 3,
    "TCGA_DU_0005_20000105": 3,
    "TCGA_EZ_0006_20000106": 2,
}


def image_pixels(seed: int, size: tuple[int, int] = (16, 16), channels: int = 3) -> np.ndarray:
    """Returns random `uint8[H, W, C]`."""
    return np.random.default_rng(seed).integers(0, 256, (*size, channels), np.uint8)


def mask_pixels(seed: int, size: tuple[int, int] = (16, 16), *, empty: bool = False) -> np.ndarray:
    """Returns `uint8[H, W]` in {0, 255}: a rectangle that depends on the seed, or nothing."""
    mask = np.zeros(size, np.uint8)
    if not empty:
        mask[1 : 3 + seed % 5, 2 : 5 + seed % 7] = 255
    return mask


def encode(pixels: np.ndarray, picture_format: str = "TIFF", **options) -> bytes:
    """Returns the bytes of a picture file."""
    buffer = io.BytesIO()
    array = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    Image.fromarray(array).save(buffer, picture_format, **options)
    return buffer.getvalue()


def write_kaggle(
    folder: Path, patients: Mapping[str, int] = PATIENTS, *, size: tuple[int, int] = (16, 16), tumour_every: int = 2
) -> Path:
    """Writes patients as a `kaggle_3m` tree, slices 1, 2, ... each; every second one has tumour. Returns the folder."""
    for patient, slices in patients.items():
        (folder / patient).mkdir(parents=True, exist_ok=True)
        for number in range(1, slices + 1):
            seed = number + 100 * int(patient.split("_")[2])
            path = folder / patient / f"{patient}_{number}"
            path.with_suffix(".tif").write_bytes(encode(image_pixels(seed, size)))
            mask = mask_pixels(seed, size, empty=number % tumour_every != 0)
            path.with_name(path.name + "_mask.tif").write_bytes(encode(mask))
    (folder / "data.csv").write_text("Patient;age\n")
    return folder


def write_zip(path: Path, *folders: Path, under: Path) -> Path:
    """Zips folders, with names relative to `under`. Returns the path."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for folder in folders:
            for file in sorted(folder.rglob("*")):
                if file.is_file():
                    archive.write(file, file.relative_to(under))
    return path


def write_pictures(folder: Path, pictures: Mapping[str, np.ndarray]) -> Path:
    """Writes arrays under their names; the extension is the format. Returns the folder."""
    formats = {"tif": "TIFF", "tiff": "TIFF", "png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "bmp": "BMP"}
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in pictures.items():
        (folder / name).write_bytes(encode(pixels, formats[name.rsplit(".", 1)[1].lower()]))
    return folder


class Slices(Source):
    """A tiny source; `read` leaves a line in `log` for every slice, so that processes can be told apart."""

    kind = "folders"
    title = "tiny slices of a test"
    notes = ("nothing is odd",)

    def __init__(self, count=10, size=(8, 6), log=None, pause=0.0, seed=0):
        self.records = [Record(f"s_{i:03d}", f"p{(7 * i) % 4}", i, "CS" if i % 2 else "DU") for i in range(count)]
        self.size, self.log, self.pause, self.seed = size, log, pause, seed

    def fingerprint(self):
        return hashlib.sha256(repr((self.size, len(self.records), self.seed)).encode()).hexdigest()

    def read(self, index):
        if self.log:
            with self.log.open("a") as file:
                file.write(f"{os.getpid()} {index}\n")
        time.sleep(self.pause)
        rng = np.random.default_rng((self.seed, index))
        height, width = self.size
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        return image, (rng.random((height, width, 1)) < index / 20).astype(np.uint8)


def replaced(source: Slices, index: int, **changes) -> Slices:
    """Changes fields of one record."""
    source.records[index] = dataclasses.replace(source.records[index], **changes)
    return source
