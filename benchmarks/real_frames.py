"""The main job on real frames, judged by what the frames themselves say.

    python benchmarks/real_frames.py DATA [--keep DIRECTORY]

DATA holds the folders hatp32, lowell_night and m27_osc. With --keep, stacks and previews stay there.

hatp32        142 undersampled frames with drift and rotation: all are registered, the trailed ones are the most
              elongated, the union covers all footprints and no more, the intersection is covered by every frame
lowell_night  bias, overscan and flat: stars of SNR >= 100 through the fitted transforms; the evenness of the
              flattened sky in the inner 80 %, as the largest deviation of a mesh of 6 x 6 cells from their median,
              each cell the median of its pixels away from stars and from the haloes of the brightest
halves        even and odd frames of hatp32 and lowell_night stacked apart: the scatter of the stars' flux ratios over
              what UNCERT and NOISCORR of both predict (robust, 95 % interval by bootstrap, which must reach below
              1.1), by the predicted error;
              a quadratic trend over the field, of point-spread function and transparency, is taken off. Beside it
              the same from aperture sums on the single calibrated frames, neither resampled nor clipped
gain          of lowell_night from pairs of flats and from its sky
m27_osc       light of the nebula in an aperture above the far sky, in the stack beside the scaled frames' mean

Exits non-zero where a target is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
from astropy.io import fits
from photutils.aperture import CircularAperture
from scipy import ndimage
from scipy.linalg import hadamard
from scipy.spatial import cKDTree

import fastack
from fastack import report
from fastack.errors import CalibrationError, FastackWarning
from fastack.files import find_frames
from fastack.frames import open_frame
from fastack.gain import camera_gain
from fastack.load_calibration import load_calibration
from fastack.types import PixelFlag, StarFlag
from fastack.uncertainty import NoiseCorrelation, aperture_error

Row = tuple[str, float, str, bool]

TRAILED = {"HATP-32171220050612.FITS", "HATP-32171220080612.FITS", "HATP-32171220064512.FITS"}


def run(name: str, source: Path, keep: Path, **settings: object) -> fastack.StackResult:
    result = fastack.stack(str(source), output_path=keep / f"{name}.fits", overwrite=True, **settings)
    report.write_preview(result.data, keep / f"{name}.png")
    return result


def footprints(result: fastack.StackResult, margin: float) -> np.ndarray:
    """Number of frames whose light area, less `margin` pixels on each side, holds the centre of each pixel."""
    ny, nx = result.shape
    below, above, left, right = load_calibration([r.frame for r in result.used]).edges
    y, x = np.mgrid[:ny, :nx]
    places = np.stack([x.ravel(), y.ravel()], axis=1) + np.array(result.grid.origin)
    count = np.zeros(ny * nx, int)
    for r in result.used:
        u, v = r.transform(places).T
        height, width = r.frame.shape
        inside = (u >= left + margin - 0.5) & (u <= width - right - 0.5 - margin)
        count += inside & (v >= below + margin - 0.5) & (v <= height - above - 0.5 - margin)
    return count.reshape(ny, nx)


def hatp32(data: Path, keep: Path) -> Iterator[Row]:
    source = data / "hatp32"
    union = run("hatp32_union", source, keep, maps=True)
    yield "hatp32: frames registered, of 142", len(union.used), "142", len(union.used) == 142
    shift = [np.abs(r.transform([[325.0, 250.0]])[0] - [325, 250]).max() for r in union.used]
    yield "hatp32: largest shift against the reference, px", max(shift), "-", True
    turn = [r.transform.rotation for r in union.used]
    yield "hatp32: rotation from first to last, degree", np.ptp(turn), "0.5 to 0.65", 0.5 < np.ptp(turn) < 0.65
    rms = float(np.median([r.transform.rms for r in union.used if r.name != union.reference]))
    yield "hatp32: residual of the pairs, median over frames, px", rms, "-", True
    order = sorted(union.used, key=lambda r: -r.quality.ellipticity)
    place = 1 + max(k for k, r in enumerate(order) if r.name in TRAILED)
    yield "hatp32: last place of the 3 trailed frames by ellipticity", place, "<= 8", place <= 8
    # the wobble of this mount gives 0.23 +- 0.12 to the untrailed ones
    left = {r.name for r in union.used if r.quality.ellipticity >= 0.45}
    yield "hatp32: trailed frames that --ellipticity-limit 0.45 leaves out", len(TRAILED & left), "3", left >= TRAILED
    yield "hatp32: all frames that it leaves out", len(left), "<= 14", len(left) <= 14

    # samples that were there: kept or rejected; fewer than footprints where hot pixels were masked
    samples = sum(union.plane(name).astype(int) for name in ("NCOMB", "REJLOW", "REJHIGH"))
    inner, outer = footprints(union, 1.0), footprints(union, -1.0)
    saturated = ndimage.binary_dilation(union.plane("FLAGS") & PixelFlag.SATURATED > 0, iterations=4)
    too_many = ((samples > outer) & ~saturated).mean()
    yield "hatp32 union: part of the pixels with more samples than footprints", too_many, "0", too_many == 0
    missing = (np.maximum(inner - samples, 0)[~saturated]).sum() / inner[~saturated].sum()
    yield "hatp32 union: part of the samples missing within footprints", missing, "<= 0.002", missing <= 0.002
    ny, nx = union.shape
    reach = [np.flatnonzero((outer > 0).any(axis=a)) for a in (0, 1)]
    spare = max(reach[0][0], nx - 1 - reach[0][-1], reach[1][0], ny - 1 - reach[1][-1])
    yield "hatp32 union: rows and columns beyond all footprints", spare, "<= 1", spare <= 1
    below, above, left, right = load_calibration([r.frame for r in union.used]).edges
    yield "hatp32: rows below that do not show the sky", below, "> 0", below > 0
    yield "hatp32: columns on the left that do not", left, "> 0", left > 0
    used = [[x, y] for x in (left, 649 - right) for y in (below, 499 - above)]
    corners = np.concatenate([r.transform.inverse(used) for r in union.used])
    corners -= union.grid.origin
    cut = max(0.0, -corners.min(), (corners - [nx - 1, ny - 1]).max())
    yield "hatp32 union: px of any frame cut off", cut, "<= 0.5", cut <= 0.5

    shared = run("hatp32_intersection", source, keep, framing="intersection")
    fewest = footprints(shared, -0.01).min()
    yield "hatp32 intersection: frames at the least covered pixel", fewest, "142", fewest == 142
    # one row or column more on any side would leave a frame
    grown = [larger(shared, side) for side in range(4)]
    yield "hatp32 intersection: sides that could grow by 2 px", sum(grown), "0", not any(grown)
    (dx, dy), (sx, sy) = np.array(shared.grid.origin) - union.grid.origin, shared.shape[::-1]
    dx, dy = round(dx), round(dy)
    same = union.data[dy : dy + sy, dx : dx + sx]
    both = np.isfinite(same) & np.isfinite(shared.data)
    # where blocks of the kernel begin depends on the framing: a weight may err by 1e-4
    allowed = 0.01 * union.uncertainty[dy : dy + sy, dx : dx + sx] + 1e-4 * np.abs(same)
    unlike = float((np.abs(same - shared.data) > allowed)[both].mean())
    yield "hatp32: part of the shared pixels that the framing changes", unlike, "<= 1e-5", unlike <= 1e-5


def larger(result: fastack.StackResult, side: int) -> bool:
    """Whether all frames still cover the rectangle with two rows or columns more at one side."""
    ny, nx = result.shape
    x = np.linspace(0, nx - 1, 200)
    y = np.linspace(0, ny - 1, 200)
    line = [
        np.column_stack([np.full(200, -2.0), y]), np.column_stack([np.full(200, nx + 1.0), y]),
        np.column_stack([x, np.full(200, -2.0)]), np.column_stack([x, np.full(200, ny + 1.0)]),
    ][side] + np.array(result.grid.origin)  # fmt: skip
    below, above, left, right = load_calibration([r.frame for r in result.used]).edges
    for r in result.used:
        u, v = r.transform(line).T
        height, width = r.frame.shape
        inside = (u >= left - 0.5) & (u <= width - right - 0.5) & (v >= below - 0.5) & (v <= height - above - 0.5)
        if not inside.all():
            return False
    return True


def lowell(data: Path, keep: Path) -> Iterator[Row]:
    base = data / "lowell_night"
    masters = {"bias": str(base / "bias"), "flat": str(base / "flat")}
    result = run("lowell", base / "light", keep, framing="intersection", **masters)
    yield "lowell: frames used, of 14", len(result.used), "14", len(result.used) == 14
    refused = any("0100" in note and "left out" in note for note in result.notes)
    yield "lowell: flat of filter V left out of the master", float(refused), "1", refused
    try:
        fastack.stack(str(base / "light"), flat=str(base / "flat" / "20190326.0100.fits.fz"), dry_run=True)
        refused = False
    except CalibrationError:
        refused = True
    yield "lowell: flat of filter V alone refused", float(refused), "1", refused
    reference = next(r for r in result.records if r.name == result.reference)
    bright = reference.stars[(reference.stars.snr >= 100) & (reference.stars.flags == 0)]
    medians, counts = [], []
    for r in result.used:
        if r is reference:
            continue
        distance, index = cKDTree(r.stars.xy).query(r.transform(bright.xy), distance_upper_bound=1.0)
        hit = np.isfinite(distance)
        hit[hit] &= r.stars.flags[index[hit]] == 0
        medians.append(np.median(distance[hit]))
        counts.append(hit.sum())
    worst = max(medians)
    yield (
        f"lowell: distance of {min(counts)}+ stars of SNR >= 100, worst frame's median, px",
        worst,
        "<= 0.05",
        (worst <= 0.05),
    )
    uneven, trend = evenness(result.data)
    yield "lowell: flattened sky of the stack, largest deviation, %", 100 * uneven, "<= 2", uneven <= 0.02
    yield "lowell: the same after a plane (moon, twilight), %", 100 * trend, "-", True


def evenness(data: np.ndarray) -> tuple[float, float]:
    """Largest relative deviation of the inner mesh from its median, as it is and after a fitted plane."""
    ny, nx = data.shape
    sky = np.nanmedian(data)
    filled = np.where(np.isfinite(data), data, sky)
    noise = 1.4826 * np.nanmedian(np.abs(data - sky))
    smooth = ndimage.gaussian_filter(filled, 2.0)
    stars = ndimage.binary_dilation(smooth > sky + 1.5 * noise, iterations=12)
    # the telescope's ghosts of the brightest stars reach out to 95 px
    cores, count = ndimage.label(ndimage.binary_dilation(~np.isfinite(data), iterations=2))
    sizes = ndimage.sum_labels(np.ones_like(cores), cores, np.arange(1, count + 1))
    halo = ~np.isin(cores, 1 + np.flatnonzero(sizes > 150))
    stars |= ndimage.distance_transform_edt(halo) < 110
    inner = np.where(stars, np.nan, data)[ny // 10 : ny - ny // 10, nx // 10 : nx - nx // 10]
    rows = [np.array_split(r, 6, axis=1) for r in np.array_split(inner, 6)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        mesh = np.array([[np.nanmedian(c) if np.isfinite(c).sum() > 2000 else np.nan for c in r] for r in rows])
    relative = mesh / np.nanmedian(mesh) - 1
    y, x = np.mgrid[-1:1:6j, -1:1:6j]
    known = np.isfinite(relative)
    design = np.column_stack([np.ones(known.sum()), x[known], y[known]])
    left = relative[known] - design @ np.linalg.lstsq(design, relative[known], rcond=None)[0]
    return float(np.abs(relative[known]).max()), float(np.abs(left).max())


HALF_BINS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.5)  # predicted error of the flux ratio


def halves(data: Path, keep: Path) -> Iterator[Row]:
    base = data / "lowell_night"
    masters = {"bias": str(base / "bias"), "flat": str(base / "flat")}
    yield from half_stacks("lowell", sorted((base / "light").iterdir()), keep, 6.0, **masters)
    yield from half_stacks("hatp32", sorted((data / "hatp32").iterdir()), keep, 3.0)


def half_stacks(name: str, files: list[Path], keep: Path, radius: float, **settings: object) -> Iterator[Row]:
    """Flux ratios of single stars in two stacks of half the frames each, in units of their errors.

    The even and the odd frames are one way to halve a night; others, which swap the frames of some of the pairs of
    neighbours (signs of a Hadamard matrix), have nearly independent noise. All together narrow the interval.
    """
    common = {"framing": "intersection", "overwrite": True} | settings
    whole = fastack.stack(files, output_path=keep / f"{name}_whole.fits", **common)
    stars = whole.stars
    light = np.nan_to_num(stars.flux, nan=np.inf)  # what could not be measured may be a bright neighbour
    near = cKDTree(stars.xy).query_ball_point(stars.xy, 6 * radius)
    single = []
    for i, others in enumerate(near):
        j = np.array([k for k in others if k != i], int)
        distance = np.hypot(*(stars.xy[j] - stars.xy[i]).T) / (2 * radius)
        # beyond, the wings of brighter neighbours, which change with the seeing, fall with the sixth power
        single.append((light[j] < light[i] * np.where(distance < 1, 0.02, distance**6)).all())
    alone = np.array(single) & np.isfinite(stars.flux) & ~stars.has(StarFlag.SATURATED)
    places = stars.xy[alone] + whole.grid.origin
    known = {r.name: r for r in whole.used}
    frames: dict[str, np.ndarray] = {}
    calibration = load_calibration([r.frame for r in whole.used], whole.options.calibrate)
    bright = np.argsort(-stars.flux[alone])[:200]
    for r in whole.used:
        frames[r.name] = np.full(len(places), np.nan)
        image = calibration.read(r.frame).pixels
        frames[r.name][bright] = r.scale * apertures(image, r.transform(places[bright]), radius)[0]
    ratios, unstacked, errors, trends = [], [], [], []
    for swapped in halvings(len(files)):
        flux, error, sums = np.empty((3, 2, len(places)))
        for k in (0, 1):
            names = [file.name for i, file in enumerate(files) if (i + swapped[i]) % 2 == k]
            part = fastack.stack(
                [f for f in files if f.name in names], output_path=keep / f"{name}_half{k}.fits", **common
            )
            flux[k], error[k] = measured(part, known[part.reference].transform(places) - part.grid.origin, radius)
            sums[k] = np.mean([frames[n] for n in names if n in frames], axis=0)
        good = np.isfinite(flux).all(axis=0) & np.isfinite(error).all(axis=0) & (flux > 0).all(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            errors.append(np.hypot(*(error / flux)))
            good &= errors[-1] < HALF_BINS[-1]
            ratio, other = (np.log(f[1] / f[0]) for f in (flux, sums))
        ratio, trend = flattened(ratio, errors[-1], places, good)
        trends.append(trend)
        ratios.append(np.where(good, ratio, np.nan))
        good &= np.isfinite(other)
        unstacked.append(np.where(good, flattened(other, errors[-1], places, good)[0], np.nan))
    predicted = np.sqrt(np.mean(np.square(errors), axis=0))
    yield f"{name} halves: rms of the trend over the field, %", 100 * max(trends), "-", True
    for low, high in pairwise(HALF_BINS):
        some = (predicted >= low) & (predicted < high) & np.isfinite(ratios).all(axis=0)
        if some.sum() < 8:
            continue
        pulls = np.array(ratios)[:, some] / predicted[some]
        value, reach = robust(pulls)
        first, around = robust(pulls[:1])
        head = f"{name} halves: scatter / predicted, {100 * low:g} to {100 * high:g} %"
        yield f"{head}, {some.sum()} stars, +-{reach:.2f}", value, "<= 1.1", value - reach <= 1.1
        yield f"  even and odd frames alone, +-{around:.2f}", first, "-", True
        some &= np.isfinite(unstacked).all(axis=0)
        if some.sum() >= 8:
            value, reach = robust(np.array(unstacked)[:, some] / predicted[some])
            yield f"  the same from single frames, {some.sum()} stars, +-{reach:.2f}", value, "-", True


def halvings(count: int) -> np.ndarray:
    """Which frames go to the other half, ``(8, count)``: none of them first, then pairs of neighbours by signs."""
    signs = hadamard(1 << max(3, (count // 2).bit_length()))[:8, : (count + 1) // 2]
    return np.repeat(signs < 0, 2, axis=1)[:, :count]


def measured(part: fastack.StackResult, at: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Fluxes of stars in a stack and their errors by its UNCERT and NOISCORR, NaN where saturated."""
    factor = NoiseCorrelation.read(part.header)
    weight = part.plane("WEIGHT").astype(float)
    sigma = aperture_error(part.uncertainty, 1 / weight, factor, radius)
    clean = np.where(part.plane("FLAGS") & PixelFlag.SATURATED > 0, np.nan, part.data)
    flux, sky = apertures(clean, at, radius)
    variance, _ = apertures(sigma**2, at, radius, level=False)
    noise = np.nanmedian(1 / weight) * float(factor.squared[-1]) ** 2
    return flux, np.sqrt(variance + noise * (np.pi * radius**2) ** 2 / sky)


def apertures(image: np.ndarray, at: np.ndarray, radius: float, *, level: bool = True) -> tuple[np.ndarray, int]:
    """Sums in apertures above a clipped mean of rings, NaN where a pixel is missing; pixels of a ring."""
    sums, half = np.full(len(at), np.nan), int(radius) + 14
    pixels = round(np.pi * ((radius + 13) ** 2 - (radius + 3) ** 2))
    for i, (x, y) in enumerate(at):
        a, b = round(x), round(y)
        if not (half <= a < image.shape[1] - half and half <= b < image.shape[0] - half):
            continue
        stamp = image[b - half : b + half + 1, a - half : a + half + 1].astype(float)
        mask = CircularAperture((x - a + half, y - b + half), radius).to_mask(method="exact")
        part = mask.to_image(stamp.shape)
        r = np.hypot(np.arange(-half, half + 1) + a - x, (np.arange(-half, half + 1) + b - y)[:, None])
        sky = 0.0
        if level:
            ring = stamp[(r > radius + 3) & (r < radius + 13)]
            ring = ring[np.isfinite(ring)]
            for _ in range(5):
                middle = np.median(ring)
                ring = ring[np.abs(ring - middle) < 2.5 * 1.4826 * np.median(np.abs(ring - middle)) + 1e-9]
            sky = ring.mean()
        sums[i] = (part[part > 0] * (stamp - sky)[part > 0]).sum()
    return sums, pixels


def flattened(
    ratio: np.ndarray, predicted: np.ndarray, places: np.ndarray, good: np.ndarray
) -> tuple[np.ndarray, float]:
    """Ratios without a quadratic trend over the field, and the rms of that trend."""
    x, y = ((places - places[good].mean(axis=0)) / places[good].std(axis=0)).T
    design = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
    weight, keep = 1 / np.hypot(predicted, 1e-3), good.copy()
    for _ in range(8):
        fit = np.linalg.lstsq(design[keep] * weight[keep, None], ratio[keep] * weight[keep], rcond=None)[0]
        left = ratio - design @ fit
        keep = good & (np.abs(left * weight) < 4)
    return left, float((design @ fit - fit[0])[good].std())


def robust(pulls: np.ndarray) -> tuple[float, float]:
    """Standard deviation from the median absolute deviation of ``(halvings, stars)``, and its 95 % interval."""
    rng = np.random.default_rng(0)
    stars = pulls.shape[1]

    def spread(values: np.ndarray) -> float:
        return float(1.4826 * np.median(np.abs(values - np.median(values))))

    drawn = [spread(pulls[:, rng.integers(stars, size=stars)]) for _ in range(500)]
    return spread(pulls), float((np.quantile(drawn, 0.975) - np.quantile(drawn, 0.025)) / 2)


def gain(data: Path, keep: Path) -> Iterator[Row]:
    """Gain of lowell_night from its flats, and what could make it wrong; the headers say 4.95 e-/ADU and 9.3 e-."""

    def read(folder: str) -> list[np.ndarray]:
        out = []
        for path in sorted((data / "lowell_night" / folder).iterdir()):
            with fits.open(path) as file:
                if (
                    folder == "bias"
                    or str(file[1].header.get("FILTNAME", file[1].header.get("FILTER"))).strip() == "VR"
                ):
                    out.append(file[1].data.astype(float))
        return out

    flats = [f - np.median(f[:, 1392:1430], axis=1)[:, None] for f in read("flat")]
    y, x = np.mgrid[-1:1:20j, -1:1:20j]
    plane = np.stack([np.ones(400), x.ravel(), y.ravel()], axis=1)
    found = []
    for first, second in combinations(flats, 2):
        boxes = []
        for top in range(300, 1000, 20):
            for left in range(300, 1000, 20):
                a, b = (f[top : top + 20, left : left + 20] for f in (first, second))
                k = a.mean() / b.mean()
                d = (a - k * b).ravel()
                d = (d - plane @ np.linalg.lstsq(plane, d, rcond=None)[0]).reshape(20, 20)
                light = a.mean() * (1 + k)
                pairs = d.reshape(10, 2, 10, 2).sum(axis=(1, 3))
                near = (d[:, 1:] * d[:, :-1]).mean() / (d * d).mean()
                boxes.append((a.mean(), light / ((d * d).sum() / 397), 4 * light / ((pairs**2).sum() / 97), near))
        found.append(np.median(boxes, axis=0))
    level, one, four, near = np.array(found).T
    for name, values in (("level, ADU", level), ("gain, e-/ADU", one), ("gain from 2 x 2 pixels", four)):
        yield f"lowell flats, pairs of four: lowest {name}", values.min(), "-", True
        yield f"lowell flats, pairs of four: highest {name}", values.max(), "-", True
    yield "lowell flats: correlation of neighbours, mean", near.mean(), "-", True
    bias = read("bias")
    some = np.s_[100:1300, 1392:1430], np.s_[100:1300, 100:1300]
    for name, part in zip(("overscan", "light area"), some, strict=True):
        noise = [(a - b)[part].std() / np.sqrt(2) for a, b in pairwise(bias)]
        yield f"lowell bias: noise in the {name}, least of the pairs, ADU", min(noise), "-", True
    estimate = camera_gain([open_frame(p) for p in find_frames([data / "lowell_night" / "light"])])
    yield f"lowell sky: gain, +-{estimate.error:.2f}", estimate.gain, "-", estimate.usable
    refused = camera_gain([open_frame(p) for p in find_frames([data / "hatp32"])])
    yield f"hatp32 sky: gain, +-{refused.error:.0f}: refused", refused.gain, "-", not refused.usable


def m27(data: Path, keep: Path) -> Iterator[Row]:
    result = run("m27", data / "m27_osc", keep, framing="intersection")
    yield "m27: frames used, of 6", len(result.used), "6", len(result.used) == 6
    origin = np.array(result.grid.origin)
    centre, radius = np.array([0.455, 0.53]) * result.shape[::-1], 165.0
    yy, xx = np.mgrid[: result.shape[0], : result.shape[1]]
    r = np.hypot(xx - centre[0], yy - centre[1])
    inside, far = r < radius, (r > 230) & (r < 330)
    # stars have their own tests, and saturated ones are missing in the stack
    stars = np.zeros(result.shape, bool)
    for x, y in next(q for q in result.records if q.name == result.reference).stars.xy - origin:
        stars |= np.hypot(xx - x, yy - y) < 9
    stars |= ~np.isfinite(result.data)
    stacked = contrast(result.data, inside & ~stars, far & ~stars)
    calibration = load_calibration([q.frame for q in result.used])
    single = []
    for q in result.used:
        image = calibration.read(q.frame).pixels
        there = np.rint(q.transform(np.stack([xx.ravel(), yy.ravel()], axis=1) + origin)).astype(int)
        image = image[there[:, 1].clip(0, image.shape[0] - 1), there[:, 0].clip(0, image.shape[1] - 1)]
        area = q.transform.magnification**2
        single.append(q.scale * area * contrast(image.reshape(result.shape), inside & ~stars, far & ~stars))
    mean = float(np.mean(single))
    scatter = np.std(single, ddof=1) / np.sqrt(len(single)) / mean
    ratio = stacked / mean
    yield "m27: light of the nebula, stack / mean of the frames", ratio, "1 +- 0.005", abs(ratio - 1) <= 0.005
    yield "m27: error of that mean from the frames' scatter", float(scatter), "-", True


def contrast(image: np.ndarray, inside: np.ndarray, far: np.ndarray) -> float:
    """Mean light inside above the far sky."""
    return float(np.nanmean(image[inside], dtype=float) - np.nanmean(image[far], dtype=float))


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--keep", type=Path)
    every = {f.__name__: f for f in (hatp32, lowell, halves, gain, m27)}
    parser.add_argument("--only", nargs="+", choices=every, default=list(every))
    args = parser.parse_args()
    warnings.simplefilter("ignore", FastackWarning)
    good = []
    print(f"{'figure':76s} {'value':>9s}  target")
    with tempfile.TemporaryDirectory() as scratch:
        keep = args.keep or Path(scratch)
        keep.mkdir(parents=True, exist_ok=True)
        for figures in (every[name] for name in args.only):
            start = time.perf_counter()
            for figure, value, target, met in figures(args.data, keep):
                print(f"{figure:76s} {value:9.4g}  {target:12s}{'' if met else ' MISSED'}", flush=True)
                good.append(met)
            print(f"  ({time.perf_counter() - start:.0f} s)", file=sys.stderr, flush=True)
    print("all met" if all(good) else f"{good.count(False)} missed")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
