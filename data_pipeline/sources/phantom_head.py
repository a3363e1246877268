"""The invented patients behind the synthetic phantoms, and the painting of a slice of their heads without lesions.

A patient is drawn from (seed, patient). Geometry is in relative coordinates, independent of the number of pixels: the
shorter side of a slice spans -1 to 1, u runs to the image's right, v from front (top of the image) to back, z from the
base of the skull (-0.78) to the vertex (0.94). A shape is a field over the slice: positive inside, and about as large
as the distance to its border.
"""

import dataclasses
import functools

import numpy as np

SITES = ("S1", "S2", "S1", "S3", "S1", "S2", "S1", "S4", "S2", "S1", "S3", "S2")  # of patient 0, 1, ... repeated

# Pre-contrast T1, FLAIR, post-contrast T1, before gain: about 0 to 1.
TISSUES = {
    "air": (0.0, 0.0, 0.0),
    "fat": (0.88, 0.69, 0.90),
    "muscle": (0.36, 0.34, 0.46),
    "bone": (0.07, 0.06, 0.08),
    "marrow": (0.50, 0.34, 0.52),
    "fluid": (0.15, 0.09, 0.16),
    "white": (0.66, 0.38, 0.66),
    "gray": (0.47, 0.53, 0.49),
    "nuclei": (0.54, 0.48, 0.56),
    "caps": (0.56, 0.68, 0.56),
    "flow": (0.14, 0.72, 0.16),
    "mucosa": (0.34, 0.84, 0.80),
    "choroid": (0.34, 0.30, 0.88),
    "vessel": (0.18, 0.14, 0.95),
    "vitreous": (0.13, 0.12, 0.13),
    "blood": (0.84, 0.80, 0.86),
    "cyst": (0.20, 0.14, 0.20),
    "enhancing": (0.50, 0.48, 0.92),
    "lesion": (0.37, 0.80, 0.39),
    "core": (0.25, 0.60, 0.24),
    "rim": (0.42, 0.78, 0.92),
}
ROWS = {name: row for row, name in enumerate(TISSUES)}

# Site: gain of each channel, standard deviation of the noise, strength of the bias field.
SITE_STYLES = {
    "S1": ((1.00, 1.00, 1.00), 0.026, 0.10),
    "S2": ((0.92, 1.06, 0.90), 0.034, 0.16),
    "S3": ((1.05, 0.88, 1.04), 0.040, 0.12),
    "S4": ((0.88, 0.96, 0.94), 0.030, 0.20),
}

# Smooth random fields of a patient: name -> (fields, cells along z, cells along each side of the slice).
LATTICES = {
    "warp": (2, 5, 4),
    "ripple": (2, 8, 12),
    "bias": (3, 3, 3),
    "folds": (1, 14, 24),
    "texture": (3, 14, 22),
    "bumps": (2, 8, 8),
    "lobes": (2, 12, 19),
}
SPLINE_SD = 0.69  # standard deviation that cubic B-spline interpolation along one axis leaves of white noise
SKULL = 0.05  # thickness
UNTHREADED = 2**18  # products up to this size stay on one thread; BLAS threads would compete with the threads that read


@dataclasses.dataclass(frozen=True)
class Blob:
    """A roughly round object in 3-D: a lesion, or something that only looks like one."""

    kind: str
    u: float
    v: float
    angle: float
    stretch: float
    size: float  # radius; of a lesion: largest share of the slice
    middle: float  # in slices
    half: float  # in slices


@dataclasses.dataclass(frozen=True, eq=False)
class Anatomy:
    """What all slices of a patient share."""

    slices: int
    site: str
    half_width: float
    half_length: float
    tilt: float
    shift: tuple[float, float]
    egg: float
    atrophy: float
    scalp: float
    ventricles: float
    caps: float
    flow: float
    tissues: np.ndarray  # float32[tissue, 3, 1, 1]
    gain: np.ndarray  # float32[3, 1, 1]
    lattices: dict[str, np.ndarray]  # float32[fields, z, cells, cells]
    lesion: Blob
    others: tuple[Blob, ...]


def slice_count(rng: np.random.Generator, slices_per_patient: int) -> int:
    """Draws a patient's number of slices: the first draw of `default_rng((seed, patient))`."""
    jitter = min(2, slices_per_patient // 8)
    return int(slices_per_patient + rng.integers(-jitter, jitter + 1))


@functools.lru_cache(maxsize=64)
def draw_anatomy(seed: int, patient: int, slices_per_patient: int) -> Anatomy:
    """Draws a patient; a pure function of its arguments, cached because each slice needs it."""
    rng = np.random.default_rng((seed, patient))
    slices = slice_count(rng, slices_per_patient)
    site = SITES[patient % len(SITES)]
    half_width, half_length = rng.uniform(0.66, 0.74), rng.uniform(0.82, 0.90)
    lesion = _draw_lesion(rng, patient, slices, half_width, half_length)
    kinds = ("blood", "ring", "enhancing", "blood", "ring", "cyst", "blood", "ring")
    others = tuple(
        Blob(
            kind=kind,
            u=half_width * rng.uniform(-0.6, 0.6),
            v=half_length * rng.uniform(-0.65, 0.65),
            angle=rng.uniform(0, np.pi),
            stretch=rng.uniform(1.0, 1.5),
            size=rng.uniform(0.09, 0.16) if kind == "ring" else rng.uniform(0.05, 0.15),
            middle=rng.uniform(0.2, 0.95) * slices,
            half=rng.uniform(0.06, 0.16) * slices,
        )
        for kind in kinds[: int(rng.integers(5, len(kinds) + 1))]
    )
    lattices = {
        name: rng.standard_normal((fields, depth, cells, cells), dtype=np.float32) / np.float32(SPLINE_SD**3)
        for name, (fields, depth, cells) in LATTICES.items()
    }
    # Without its slow part the field changes sign at even distances: its zero lines become evenly spaced sulci.
    folds = lattices["folds"]
    lattices["folds"] = folds - sum(np.roll(folds, shift, axis) for axis in (2, 3) for shift in (-1, 1)) / 4
    tissues = np.array(list(TISSUES.values())) * (1 + 0.05 * rng.standard_normal((len(TISSUES), 3)))
    gain = np.array(SITE_STYLES[site][0]) * rng.uniform((0.72, 0.57, 0.70), 1.0)
    return Anatomy(
        slices=slices,
        site=site,
        half_width=half_width,
        half_length=half_length,
        tilt=rng.normal(0, 0.05),
        shift=(rng.normal(0, 0.02), rng.normal(0, 0.015)),
        egg=rng.uniform(0.02, 0.12),
        atrophy=rng.uniform(0.0, 1.0),
        scalp=rng.uniform(0.035, 0.065),
        ventricles=rng.uniform(0.7, 1.5),
        caps=rng.uniform(0.0, 1.0),
        flow=rng.uniform(0.0, 1.0),
        tissues=tissues.astype(np.float32)[:, :, None, None],
        gain=gain.astype(np.float32)[:, None, None],
        lattices=lattices,
        lesion=lesion,
        others=others,
    )


def _draw_lesion(rng: np.random.Generator, patient: int, slices: int, half_width: float, half_length: float) -> Blob:
    # The golden ratio spreads the shares evenly over patients: about 65 % of slices are empty in any set of them.
    count = max(1, round((0.27 + 0.16 * ((0.5 + 0.618034 * patient) % 1)) * slices))
    lowest = round(0.22 * slices)
    first = int(rng.integers(lowest, max(round(0.92 * slices) - count, lowest) + 1))
    first = min(first, slices - count)
    return Blob(
        kind=str(rng.choice(("plain", "plain", "rim", "cystic"))),
        u=rng.choice((-1.0, 1.0)) * half_width * rng.uniform(0.25, 0.50),
        v=half_length * rng.uniform(-0.5, 0.45),
        angle=rng.uniform(0, np.pi),
        stretch=rng.uniform(1.0, 1.6),
        size=rng.uniform(0.11, 0.265) ** 2,
        middle=first + (count - 1) / 2,
        half=(count - 1) / 2 + 0.35,
    )


def _axis(pixels: int, side: int) -> np.ndarray:
    return ((2 * np.arange(pixels) + 1 - pixels) / side).astype(np.float32)


def _spline_weights(coordinates: np.ndarray, cells: int) -> np.ndarray:
    """Cubic B-spline weights `[n, cells]` of a periodic lattice whose period is -1 to 1."""
    position = (np.asarray(coordinates, np.float64) + 1) / 2 * cells
    base = np.floor(position)
    t = position - base
    weights = np.zeros((len(position), cells))
    rows = np.arange(len(position))
    taps = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    for offset, tap in enumerate(taps):
        np.add.at(weights, (rows, (base.astype(int) + offset - 1) % cells), tap / 6)
    return weights.astype(np.float32)


@functools.lru_cache(maxsize=128)
def _axis_weights(pixels: int, side: int, cells: int) -> np.ndarray:
    return _spline_weights(_axis(pixels, side), cells)


@functools.lru_cache(maxsize=2048)
def _depth_weights(z: float, cells: int) -> np.ndarray:
    return _spline_weights(np.array([z]), cells)[0]


def ramp(field: np.ndarray, width: float) -> np.ndarray:
    """Returns 0 to 1 over `width` around field = 0."""
    alpha = field * np.float32(1 / width)
    alpha += np.float32(0.5)
    np.maximum(alpha, 0, out=alpha)
    return np.minimum(alpha, 1, out=alpha)


def distance(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Returns the length of (u, v); `np.hypot` guards against overflow and takes several times as long."""
    squared = u * u + v * v
    return np.sqrt(squared, out=squared)


class Canvas:
    """One slice being painted.

    Only the rectangle that holds the head is painted: outside is air. Edges are about a pixel soft.

    Attributes:
      anatomy: the patient.
      index: the slice, from 0 at the base of the skull.
      size: height and width of the slice in pixels.
      crop: rows and columns of the slice that hold the head, h by w pixels.
      u: `float32[1, w]`, v: `float32[h, 1]`, relative coordinates of the crop's pixels; z: height of the slice.
      scale: the head's size at this height as a share of its largest.
      image: `float32[3, h, w]`, pre-contrast T1, FLAIR, post-contrast T1.
    """

    def __init__(self, anatomy: Anatomy, index: int, size: tuple[int, int]):
        self.anatomy, self.index, self.size = anatomy, index, size
        self.z = z = -0.78 + 1.72 * (index + 0.5) / anatomy.slices
        self.scale = float(np.sqrt(1 - (z / (1.10 if z > 0 else 1.7)) ** 2))
        side = min(size)
        self.pixel = 2 / side
        self.edge = max(0.014, 1.2 * self.pixel)
        v, u = _axis(size[0], side), _axis(size[1], side)
        reach = 0.10 + 0.06 * self.scale
        self.crop = (
            _between(v, anatomy.shift[1], anatomy.half_length * self.scale + reach),
            _between(u, anatomy.shift[0], anatomy.half_width * self.scale + reach),
        )
        self.v, self.u = v[self.crop[0], None], u[None, self.crop[1]]
        self.image = np.zeros((3, self.v.size, self.u.size), np.float32)

    def plane(self, lattices: np.ndarray) -> np.ndarray:
        """Interpolates `[fields, cells, cells]` to `float32[fields, h, w]`."""
        fields, _, cells = lattices.shape
        side = min(self.size)
        rows = _axis_weights(self.size[0], side, cells)[self.crop[0]]
        columns = _axis_weights(self.size[1], side, cells)[self.crop[1]].T
        plane = np.empty((fields, len(rows), columns.shape[1]), np.float32)
        step = max(1, UNTHREADED // (cells * max(1, columns.shape[1])))
        for start in range(0, len(rows), step):
            block = slice(start, start + step)
            np.matmul(rows[block] @ lattices, columns, out=plane[:, block])
        return plane

    def cut(self, name: str) -> np.ndarray:
        """Cuts the patient's random fields at this height: `float32[fields, h, w]` of about unit variance."""
        lattices = self.anatomy.lattices[name]
        weights = _depth_weights(self.z, lattices.shape[1])
        return self.plane(np.einsum("z,fzyx->fyx", weights, lattices))

    def window(self, u: float, v: float, radius: float) -> tuple[slice, slice]:
        """Rows and columns of the crop within `radius` of a point: painting small things costs little."""
        return _between(self.v[:, 0], v, radius), _between(self.u[0], u, radius)

    def paint(self, tissue: str, alpha: np.ndarray, window: tuple[slice, slice] = (slice(None), slice(None))) -> None:
        """Blends a tissue in; `alpha` is `[h, w]` in [0, 1], of the size of the window."""
        view = self.image[:, window[0], window[1]]
        change = self.anatomy.tissues[ROWS[tissue]] - view
        change *= alpha
        view += change

    def fill(self, tissue: str, field: np.ndarray, soft: float = 0.0, strength: float = 1.0) -> None:
        """Paints where the field is positive; the edge is `soft` wide, or a pixel if that is more."""
        alpha = ramp(field, max(self.edge, soft))
        if strength != 1:
            alpha *= np.float32(strength)
        self.paint(tissue, alpha)


def _between(axis: np.ndarray, centre: float, radius: float) -> slice:
    first, last = np.searchsorted(axis, (centre - radius, centre + radius))
    return slice(int(first), int(last))


@dataclasses.dataclass(frozen=True, eq=False)
class Head:
    """Fields of a painted head, each `float32[h, w]` over the canvas' crop.

    Attributes:
      u, v: coordinates in the patient's own frame, warped.
      depth: below the skin.
      brain: below the brain's surface, negative outside.
      fluid: positive inside the ventricles and between them.
    """

    u: np.ndarray
    v: np.ndarray
    depth: np.ndarray
    brain: np.ndarray
    fluid: np.ndarray


def paint_head(canvas: Canvas) -> Head:
    """Paints everything that belongs to the patient without lesions."""
    a, z, scale = canvas.anatomy, canvas.z, canvas.scale
    ripple = canvas.cut("ripple")
    warp = np.float32(0.020) * canvas.cut("warp") + np.float32(0.008) * ripple
    u = (canvas.u - np.float32(a.shift[0])) + np.float32(a.tilt) * canvas.v + warp[0]
    v = (canvas.v - np.float32(a.shift[1])) - np.float32(a.tilt) * canvas.u + warp[1]
    across = np.abs(u)
    width, length = a.half_width * scale, a.half_length * scale
    radius = distance(u / (width * (1 + a.egg * v)), v / length)
    depth = (1 - radius) * np.float32(0.5 * (width + length))
    low = max(0.0, -(z + 0.30) / 0.48)  # 0 above the base of the skull, 1 at the lowest slice

    canvas.fill("fat", depth)
    if low > 0:
        canvas.fill("muscle", depth - (0.02 + 0.06 * (1 - v)))
    inner = depth - np.float32(a.scalp)
    canvas.fill("bone", inner)
    canvas.paint("marrow", ramp(0.012 - np.abs(inner - 0.024), canvas.edge) * np.float32(0.8))
    brain = inner - np.float32(SKULL + 0.010 + 0.020 * a.atrophy)
    face = v + np.float32(length * (1.0 - 0.62 * low))
    if low > 0:
        brain = np.minimum(brain, face - 0.10 + 0.25 * across)
    canvas.fill("fluid", brain + np.float32(0.010 + 0.014 * a.atrophy))
    canvas.fill("gray", brain)
    fluid = _paint_inside(canvas, v, across, brain, ripple[0])
    if low > 0:
        _paint_face(canvas, v, across, depth, face, ripple[0], low, length)
    _paint_vessels(canvas, u, v, depth, length, ripple[1])
    return Head(u, v, depth, brain, fluid)


def _paint_inside(
    canvas: Canvas, v: np.ndarray, across: np.ndarray, brain: np.ndarray, wobble: np.ndarray
) -> np.ndarray:
    """Cortex, white matter, nuclei, ventricles with caps; returns a field positive inside and between ventricles."""
    a, z = canvas.anatomy, canvas.z
    # The zero lines of a band-passed field wind like sulci; the ribbon next to them is cortex.
    ridge = np.abs(canvas.cut("folds")[0])
    shell = np.clip((0.27 - brain) * 9, -0.15, 1)  # folds end at some depth below the surface
    canvas.fill("white", np.minimum(brain - 0.028, (ridge - 0.50 * shell) * 0.055), soft=0.022)
    sulcus = np.minimum(np.minimum(brain + 0.012, 0.19 - brain), 0.006 + 0.006 * a.atrophy - ridge * 0.05)
    canvas.fill("fluid", sulcus, strength=0.85)
    gap = np.abs(v) - (0.36 - 0.5 * max(z - 0.45, 0)) * canvas.scale
    falx = np.minimum(0.005 + 0.004 * a.atrophy - across, brain + 0.02)
    canvas.fill("fluid", np.minimum(falx, gap), strength=0.8)
    if -0.32 < z < 0.22:
        size = np.sqrt(1 - ((z + 0.05) / 0.27) ** 2)
        canvas.fill("nuclei", size - distance((across - 0.12) / 0.07, (v - 0.10) / 0.12), soft=0.3, strength=0.8)
        canvas.fill("nuclei", size - distance((across - 0.22 - 0.15 * v) / 0.055, (v + 0.08) / 0.17), soft=0.3)
    if -0.5 < z < 0.2:
        line = v + 0.10 - 0.35 * (across - 0.4) + 0.9 * np.square(across - 0.45) + 0.022 * wobble
        fissure = np.minimum((0.008 + 0.006 * a.atrophy) * (8 * across - 2.2) - np.abs(line), brain + 0.02)
        canvas.fill("gray", np.minimum(fissure + 0.035, across - 0.30), soft=0.02)
        canvas.fill("fluid", fissure)
    fluid = between = np.full(across.shape, -1, np.float32)
    if -0.28 < z < 0.52:
        extent = float(np.sqrt(1 - ((z - 0.12) / 0.40) ** 2))
        t = np.square((v + 0.02) / np.float32(0.36 * extent))
        bend = 0.035 + np.float32(0.10 * (1.1 - z)) * np.minimum(t, 1.5)
        half = np.sqrt(np.maximum(1 - t, 0)) * (0.55 + 0.9 * t) * np.float32(0.045 * a.ventricles * extent)
        fluid = half - np.abs(across - bend + 0.006 * wobble) - 0.25 * np.maximum(t - 1, 0)
        between = np.minimum(bend, 0.22 * (1.15 - t)) - across
        caps = np.minimum(fluid + np.float32(0.020 + 0.030 * a.caps), 0.15 * (t - 0.4))
        canvas.fill("caps", caps, soft=0.03, strength=0.4 + 0.6 * a.caps)
    if -0.36 < z < 0.05:
        third = np.minimum(0.010 * a.ventricles - across + 0.004, 0.13 - np.abs(v - 0.04))
        fluid = np.maximum(fluid, third)
    if z < -0.30:
        fluid = np.maximum(fluid, _paint_base(canvas, v, across, brain, wobble))
    canvas.fill("fluid", fluid)
    if -0.1 < z < 0.35:
        plexus = 0.020 - distance(across - 0.085 - 0.05 * z, (v - 0.16) * 0.45)
        canvas.fill("choroid", np.minimum(plexus, fluid + 0.01))
    # Moving fluid escapes the suppression of FLAIR: as bright as a lesion, as dark as fluid in T1.
    if a.flow > 0.35:
        reach = ramp(0.05 + 0.05 * a.flow - np.abs(v - 0.02), 0.08)
        canvas.paint("flow", ramp(fluid - 0.002, canvas.edge) * reach * np.float32(0.35 + 0.65 * a.flow))
    return np.maximum(fluid, between)


def _paint_base(canvas: Canvas, v: np.ndarray, across: np.ndarray, brain: np.ndarray, wobble: np.ndarray) -> np.ndarray:
    """Cerebellum, brain stem and the cisterns around them; returns a field positive inside the fourth ventricle."""
    rear = np.minimum(brain, v - 0.16 - 0.25 * across - 0.6 * (canvas.z + 0.42) + 0.010 * wobble)
    leaves = np.sin(44 * distance(across, v - 0.22) + wobble)
    canvas.fill("fluid", rear + 0.022)
    canvas.fill("gray", rear)
    canvas.fill("white", np.minimum(rear - 0.03, 0.02 * leaves - 0.002), soft=0.03, strength=0.7)
    canvas.fill("white", 0.15 - distance(across - 0.15, (v - 0.42) * 1.1) + 0.02 * leaves, soft=0.05, strength=0.8)
    stem = 0.115 - distance(across * 0.85, v - 0.12) + 0.006 * wobble
    canvas.fill("fluid", np.minimum(stem + 0.03 - 0.10 * np.maximum(v - 0.1, 0), brain))
    canvas.fill("fluid", np.minimum(0.085 - distance(across * 0.8, v + 0.08) + 0.018 * wobble, brain))
    canvas.fill("white", stem)
    return 0.045 * canvas.anatomy.ventricles - distance(across * 0.8, v - 0.27)


def _paint_face(
    canvas: Canvas,
    v: np.ndarray,
    across: np.ndarray,
    depth: np.ndarray,
    face: np.ndarray,
    wobble: np.ndarray,
    low: float,
    length: float,
) -> None:
    """Orbits with eyes in fat, air cells of the nose with bright mucosa, the dark temporal bone."""
    grown = min(1.0, 2.5 * low)
    front = np.minimum(0.08 - face - 0.25 * across, depth - 0.03)
    canvas.fill("bone", np.minimum(front + 0.02, depth - 0.04))
    canvas.fill("muscle", front, strength=min(1.0, 2 * low))
    behind = v + 0.80 * length
    beside = across - 0.27
    canvas.fill("fat", np.minimum(0.17 * grown - distance(beside, behind * 0.75) + 0.01 * wobble, depth - 0.02))
    nerve = np.minimum(0.012 - np.abs(beside + 0.35 * (behind - 0.1)), 0.15 * grown - np.abs(behind - 0.05))
    canvas.fill("muscle", np.minimum(nerve, depth - 0.03))
    ball = np.minimum(0.095 * grown - distance(beside, behind), depth - 0.01)
    canvas.fill("muscle", ball + 0.012)
    canvas.fill("vitreous", ball)
    nose = 0.08 - 0.08 * distance(across / (0.05 + 0.10 * low), (v + 0.70 * length) / (0.05 + 0.20 * low))
    nose = np.minimum(nose + 0.012 * wobble, depth - 0.04)
    canvas.fill("mucosa", nose + 0.016)
    canvas.fill("air", np.minimum(nose, 0.05 * (wobble + 0.35)))
    petrous = 0.040 * min(1.0, 1.5 * low) - 0.9 * np.abs(v - 0.02 - 0.5 * (across - 0.4) + 0.02 * wobble)
    canvas.fill("bone", np.minimum(np.minimum(petrous, across - 0.24), depth - 0.05), soft=0.03)


def _paint_vessels(
    canvas: Canvas, u: np.ndarray, v: np.ndarray, depth: np.ndarray, length: float, wobble: np.ndarray
) -> None:
    """Sinuses and arteries: bright after contrast, flow voids before."""
    z, inner = canvas.z, canvas.anatomy.scalp + SKULL
    if z > -0.35:
        sinus = 0.026 - distance(u, (v - (length - inner - 0.02)) * 0.7)
        if z > 0.35:
            sinus = np.maximum(sinus, 0.022 - distance(u, (v + (length - inner - 0.02)) * 0.7))
        canvas.fill("vessel", sinus)
    else:
        sides = np.minimum(0.018 - np.abs(depth - inner - 0.012), np.minimum(v - 0.3, np.abs(u) - 0.15))
        canvas.fill("vessel", np.maximum(sides, 0.018 - distance(u, v + 0.02)))
    if -0.45 < z < -0.2:
        branches = 0.007 - np.abs(v + 0.06 + 0.25 * (np.abs(u) - 0.1) + 0.03 * wobble)
        canvas.fill("vessel", np.minimum(branches, 0.26 - np.abs(u)), strength=0.8)
