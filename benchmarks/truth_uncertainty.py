"""Errors against truth: the scatter of aperture sums over the error that UNCERT and NOISCORR give.

    python benchmarks/truth_uncertainty.py [--quick] [--samples N] [--seed N] [--log FILE]

Frames of noise, with and without stars, go through the kernels of the stack with known transforms: random sub-pixel
shifts, or these and a rotation that grows to 1.5 degrees. Apertures of 1, 2.5 and 5 FWHM lie on blank sky; on stars,
the stack of the same frames without noise is subtracted first. photutils computes sums and errors, the error image
being that of `aperture_error`. The ratio of each cell stands with its 95 % interval (jackknife
over realisations and their quarters). The last lines are the observatory's example: nine frames, 100 counts in the
object, and equal stars through the whole pipeline, as other programs see them that were told what
`fastack errors` prints (SExtractor where it is installed).

With `--log` every line is appended to a file as soon as it is known, and a later call goes on where the file ends.

Exits non-zero where a ratio lies outside of 0.97 to 1.03 (of other programs: 0.95 to 1.05 by more than its interval).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from photutils.aperture import CircularAperture, aperture_photometry
from scipy.spatial import cKDTree

import fastack
from fastack.combine import HALO, Combined, NoiseModel, combine_tile
from fastack.error_guide import read_guide, rms_map
from fastack.options import CombineOptions, Kernel, ResampleOptions
from fastack.render import render_stars
from fastack.resample import resample_tile
from fastack.simulate import NightOptions, simulate_night
from fastack.types import Transform
from fastack.uncertainty import aperture_error, noise_correlation

PAD = 48  # pixels of a frame beyond the output, so that every frame covers it
LOW, HIGH = 0.97, 1.03
RADII = (1.0, 2.5, 5.0)  # FWHM
REPEAT = 4  # realisations of the noise for one geometry of frames with stars


@dataclass(frozen=True)
class Cell:
    n: int
    kernel: Kernel
    rotation: float  # of the last frame, degree
    sky: float  # e-/pixel
    gain: float  # e-/ADU
    rdnoise: float  # e-
    fwhm: float  # pixel
    flux: float = 0.0  # of a star, e- in a frame; 0: blank sky
    spread: float = 0.0  # of ln scale and ln weight between the frames


def cells(quick: bool) -> list[Cell]:
    skies, gains, reads, widths = (5.0, 150.0, 3000.0), (0.5, 1.5, 5.0), (2.0, 15.0, 6.0), (2.0, 3.0, 4.0)
    out, k = [], 0
    for n in (3, 10) if quick else (3, 10, 50):
        for kernel in ("nearest", "bilinear", "lanczos3"):
            for rotation in (0.0, 1.5):
                i, j, m = k % 3, (k // 3) % 3, (k // 2) % 3
                out.append(Cell(n, kernel, rotation, skies[m], gains[j], reads[i], widths[j]))  # type: ignore[arg-type]
                k += 1
    out.append(Cell(10, "lanczos3", 1.5, 150.0, 1.5, 6.0, 3.0, spread=0.3))
    if not quick:
        others: tuple[Kernel, ...] = ("bicubic", "lanczos2", "lanczos4", "area")
        out += [Cell(10, kernel, 1.5, 150.0, 1.5, 6.0, 6.0) for kernel in others]
        # hardly any sky: the average itself falls below none in half of the pixels
        out += [Cell(3, kernel, 1.5, 0.3, 0.5, 2.0, 2.0) for kernel in ("nearest", "lanczos3")]  # type: ignore[arg-type]
        out += [Cell(200, kernel, 1.5, 150.0, 1.5, 6.0, 3.0) for kernel in ("bilinear", "lanczos3")]
    stars = [
        Cell(3, "lanczos3", 0.0, 20.0, 1.5, 6.0, 3.0, flux=1e5),
        Cell(3, "bilinear", 1.5, 150.0, 0.5, 2.0, 4.0, flux=1e5),
        Cell(10, "nearest", 1.5, 150.0, 1.5, 6.0, 3.0, flux=1e5),
        Cell(10, "bilinear", 1.5, 150.0, 1.5, 6.0, 3.0, flux=3e3),
        Cell(10, "bilinear", 1.5, 150.0, 1.5, 6.0, 3.0, flux=1e5),
        Cell(10, "bicubic", 1.5, 20.0, 5.0, 15.0, 3.0, flux=2e4),
        Cell(10, "lanczos3", 1.5, 150.0, 1.5, 6.0, 3.0, flux=3e3),
        Cell(10, "lanczos3", 1.5, 150.0, 1.5, 6.0, 3.0, flux=1e5),
        Cell(10, "lanczos4", 1.5, 150.0, 1.5, 2.0, 2.0, flux=1e5),
    ]
    if not quick:
        stars += [
            Cell(50, "bilinear", 1.5, 20.0, 0.5, 2.0, 3.0, flux=1e5),
            Cell(50, "lanczos3", 1.5, 3000.0, 5.0, 15.0, 2.0, flux=1e5),
            Cell(200, "lanczos3", 1.5, 150.0, 1.5, 6.0, 3.0, flux=1e5),
        ]
    return [*out, *stars]


def transforms(cell: Cell, rng: np.random.Generator, size: int) -> list[Transform]:
    """Output pixels to pixels of frames that reach PAD further on every side."""
    out = []
    for k in range(cell.n):
        a = np.radians(cell.rotation) * k / max(1, cell.n - 1)
        shift = rng.uniform(-2, 2, 2) + PAD
        middle = (size - 1) / 2
        c, s = np.cos(a), np.sin(a)
        matrix = np.array([[c, -s, middle - c * middle + s * middle], [s, c, middle - s * middle - c * middle]])
        matrix[:, 2] += shift
        out.append(Transform.affine(matrix))
    return out


def noisy(light: np.ndarray | float, shape: tuple[int, int], cell: Cell, rng: np.random.Generator) -> np.ndarray:
    """Electrons as a camera counts them, in ADU."""
    mean = np.broadcast_to(np.asarray(light, float), shape)
    electrons = rng.poisson(mean) if mean.min() < 100 else mean + np.sqrt(mean) * rng.standard_normal(shape, np.float32)
    return ((electrons + cell.rdnoise * rng.standard_normal(shape, np.float32)) / cell.gain).astype(np.float32)


def stack(
    frames: Any, to_frames: Sequence[Transform], scale: np.ndarray, cell: Cell, noise: NoiseModel, size: int
) -> Combined:
    """The kernels of the second pass, nothing rejected."""
    wide = (-HALO, size + HALO, -HALO, size + HALO)
    shape = (size + 2 * HALO, size + 2 * HALO)
    cube, factor = np.empty((cell.n, *shape), np.float32), np.empty((cell.n, *shape), np.uint8)
    for k, (frame, to_frame) in enumerate(zip(frames, to_frames, strict=True)):
        resample_tile(
            frame, (0, 0), frame.shape, to_frame, wide, scale=float(scale[k]), sky=cell.sky / cell.gain,
            out=cube[k], factor=factor[k], options=ResampleOptions(kernel=cell.kernel),
        )  # fmt: skip
    options = CombineOptions(reject="none")
    return combine_tile(cube, factor, noise, pedestal=0.0, tile=(0, size, 0, size), halo=HALO, options=options)


def pulls(cell: Cell, seed: int, size: int, repeat: int = 1) -> dict[float, tuple[np.ndarray, np.ndarray]]:
    """Positions and flux/error of apertures on `repeat` realisations of one geometry, by radius in FWHM."""
    rng = np.random.default_rng([seed, cell.n, int(10 * cell.rotation), int(cell.sky), int(cell.flux)])
    to_frames = transforms(cell, rng, size)
    scale = np.exp(cell.spread * rng.standard_normal(cell.n))
    weight = np.exp(cell.spread * rng.standard_normal(cell.n))
    noise = NoiseModel.make(
        cell.n, sky=cell.sky / cell.gain, gain=cell.gain, rdnoise=cell.rdnoise, fwhm=cell.fwhm, scale=scale,
        weight=weight, noise=np.sqrt(cell.sky + cell.rdnoise**2) / cell.gain,
    )  # fmt: skip
    shape = (size + 2 * PAD, size + 2 * PAD)
    # apertures of 5 FWHM touch, their light does not count: the noise-free stack is subtracted
    step = round(10 * cell.fwhm)
    x, y = np.meshgrid(np.arange(step, size - step, step), np.arange(step, size - step, step))
    stars = np.stack([x.ravel(), y.ravel()], axis=1) + rng.uniform(-0.5, 0.5, (x.size, 2))

    def light(k: int) -> np.ndarray | float:
        if not cell.flux:
            return cell.sky
        return cell.sky + render_stars(shape, to_frames[k](stars), np.full(len(stars), cell.flux), fwhm=cell.fwhm)

    lights = [light(k) for k in range(cell.n)]
    clean: np.ndarray | float = 0.0
    if cell.flux:
        ideal = ((one / cell.gain).astype(np.float32) for one in lights)  # type: ignore[union-attr]
        clean = stack(ideal, to_frames, scale, cell, noise, size).data
    correlation = noise_correlation(
        to_frames,
        (size, size),
        (weight * scale * noise.noise) ** 2,
        ResampleOptions(kernel=cell.kernel),
        fwhm=float(np.hypot(cell.fwhm, 1.0)),  # the pixel widens it
    )
    out: dict[float, list[tuple[np.ndarray, np.ndarray]]] = {part: [] for part in RADII}
    for _ in range(repeat):
        made = stack((noisy(one, shape, cell, rng) for one in lights), to_frames, scale, cell, noise, size)
        for part in RADII:
            radius = part * cell.fwhm
            if cell.flux:
                at = stars
            else:
                step = max(int(1.5 * radius), 4)
                x, y = np.meshgrid(
                    np.arange(radius + 2, size - radius - 2, step), np.arange(radius + 2, size - radius - 2, step)
                )
                at = np.stack([x.ravel(), y.ravel()], axis=1) + rng.uniform(-0.5, 0.5, (x.size, 2))
            error = aperture_error(
                np.sqrt(made.variance), made.background_variance, correlation, radius, squared=SQUARED
            )
            table = aperture_photometry(made.data - clean, CircularAperture(at, radius), error=error)
            out[part].append((at, np.asarray(table["aperture_sum"]) / np.asarray(table["aperture_sum_err"])))
    return {part: (np.concatenate([a for a, _ in v]), np.concatenate([p for _, p in v])) for part, v in out.items()}


def partial_pixels_squared() -> bool:
    """How the installed photutils counts the variance of partial pixels."""
    one, aperture = np.ones((9, 9)), CircularAperture((4, 4), 2.0)
    return float(aperture_photometry(one, aperture, error=one)["aperture_sum_err"][0]) ** 2 < 0.95 * aperture.area


SQUARED = partial_pixels_squared()


def ratio(cell: Cell, samples: int, size: int, seed: int = 1) -> dict[float, tuple[int, float, float]]:
    """Number of apertures, root mean square of flux/error and its 95 % half interval, by radius in FWHM."""
    blocks: dict[float, list[np.ndarray]] = {part: [] for part in RADII}
    for realisation in range(1000):
        for part, (at, pull) in pulls(cell, seed + 1000 * realisation, size, REPEAT if cell.flux else 1).items():
            quarter = (at[:, 0] > size / 2) + 2 * (at[:, 1] > size / 2)
            blocks[part] += [pull[quarter == q] ** 2 for q in range(4)]
        if min(sum(map(len, b)) for b in blocks.values()) >= samples:
            break
    out = {}
    for part, block in blocks.items():
        total, count = np.array([b.sum() for b in block]), np.array([len(b) for b in block])
        value = np.sqrt(total.sum() / count.sum())
        without = np.sqrt((total.sum() - total) / (count.sum() - count))
        n = len(block)
        error = np.sqrt((n - 1) / n * np.sum((without - without.mean()) ** 2))
        out[part] = int(count.sum()), float(value), float(1.96 * error)
    return out


def example(kernel: Kernel, dithered: bool, n: int = 9, counts: float = 100.0, seed: int = 1) -> tuple[float, float]:
    """Relative scatter and mean predicted error of an object of 100 counts in each frame, photons alone."""
    cell = Cell(n, kernel, 0.0, 0.0, 1.0, 0.0, 3.0, flux=counts)
    size, fluxes, errors = 480, [], []
    for field in range(6):
        rng = np.random.default_rng([seed, field])
        to_frames = [
            Transform.affine(np.array([[1.0, 0.0, PAD + dx], [0.0, 1.0, PAD + dy]]))
            for dx, dy in (rng.uniform(-2, 2, (n, 2)) if dithered else np.zeros((n, 2)))
        ]
        x, y = np.meshgrid(np.arange(20, size - 20, 24), np.arange(20, size - 20, 24))
        stars = np.stack([x.ravel(), y.ravel()], axis=1) + rng.uniform(-0.5, 0.5, (x.size, 2))
        shape = (size + 2 * PAD, size + 2 * PAD)
        frames = (
            noisy(render_stars(shape, t(stars), np.full(len(stars), counts), fwhm=3.0), shape, cell, rng)
            for t in to_frames
        )
        noise = NoiseModel.make(n, sky=0.0, gain=1.0, rdnoise=0.0, noise=0.0, fwhm=3.0)
        made = stack(frames, to_frames, np.ones(n), cell, noise, size)
        factor = noise_correlation(to_frames, (size, size), None, ResampleOptions(kernel=kernel)).at(
            12, squared=SQUARED
        )
        error = np.sqrt(made.variance) * float(factor)
        table = aperture_photometry(made.data, CircularAperture(stars, 12), error=error)
        fluxes.append(table["aperture_sum"])
        errors.append(table["aperture_sum_err"])
    flux = np.concatenate(fluxes)
    return float(np.std(flux) / np.mean(flux)), float(np.sqrt(np.mean(np.concatenate(errors) ** 2)) / np.mean(flux))


def programs(seed: int, n_nights: int = 10) -> list[tuple[str, float, float]]:
    """Error of equal stars by each program over their scatter, end to end: name, ratio, its standard error.

    Nine frames with dithers and a rotation of 1 degree through the whole pipeline; radius 5 px.
    """
    fluxes: list[np.ndarray] = []
    errors: dict[str, list[np.ndarray]] = {}
    x, y = np.meshgrid(np.arange(30, 610, 24), np.arange(30, 610, 24))
    for night_seed in range(100 * seed, 100 * seed + n_nights):
        rng = np.random.default_rng(night_seed)
        stars = np.stack([x.ravel(), y.ravel()], axis=1) + rng.uniform(-0.5, 0.5, (x.size, 2))
        options = NightOptions(
            n_frames=9, shape=(640, 640), rotation=1.0, seed=night_seed, rdnoise=12.0, fwhm_spread=0.0
        )
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory)
            night = simulate_night(
                options, catalogue={"x": stars[:, 0], "y": stars[:, 1], "flux": np.full(x.size, 8e3)}
            )
            night.write(path)
            fastack.stack(path, output_path=path / "m.fits", framing="reference", reference="d0001.fits")
            guide = read_guide(path / "m.fits")
            with fits.open(path / "m.fits") as file:
                data, uncert, weight, counts = (file[k].data.astype(float) for k in (0, "UNCERT", "WEIGHT", "NCOMB"))
            full = np.array([counts[int(b) - 8 : int(b) + 9, int(a) - 8 : int(a) + 9].min() >= 8 for a, b in stars])
            at = CircularAperture(stars[full], 5.0)
            level = np.nanmedian(data)
            error = aperture_error(uncert, 1 / weight, guide.correlation, 5.0, squared=SQUARED)
            table = aperture_photometry(np.nan_to_num(data - level), at, error=np.nan_to_num(error))
            flux = np.asarray(table["aperture_sum"])
            fluxes.append(flux - flux.mean())
            errors.setdefault("photutils", []).append(np.asarray(table["aperture_sum_err"]))
            assert guide.gain is not None
            assert guide.bias is not None
            photons = np.nan_to_num((data - guide.bias_at(5.0)) / guide.gain)
            gaia = np.sqrt(np.asarray(aperture_photometry(photons, at)["aperture_sum"]))
            errors.setdefault("photon statistics, as in GAIA", []).append(gaia)
            if shutil.which("source-extractor"):
                rms_map(path / "m.fits", 5.0).writeto(path / "rms.fits")
                errors.setdefault("SExtractor", []).append(_sextractor(path, guide.gain, stars[full]))
    flux, ratios = np.concatenate(fluxes), []
    scatter = np.std(flux)
    for name, parts in errors.items():
        error = np.sqrt(np.nanmean(np.concatenate(parts) ** 2))
        ratios.append((name, float(error / scatter), float(error / scatter / np.sqrt(2 * len(flux)))))
    return ratios


def _sextractor(path: Path, gain: float, stars: np.ndarray) -> np.ndarray:
    """FLUXERR_APER of the stars."""
    (path / "p").write_text("X_IMAGE\nY_IMAGE\nFLUX_APER(1)\nFLUXERR_APER(1)\n")
    (path / "c.conv").write_text("CONV NORM\n1 2 1\n2 4 2\n1 2 1\n")
    words = (
        f"m.fits[0] -c /dev/null -PARAMETERS_NAME p -FILTER_NAME c.conv -CATALOG_NAME out.cat -PHOT_APERTURES 10"
        f" -GAIN {gain} -WEIGHT_TYPE MAP_RMS -WEIGHT_IMAGE rms.fits -VERBOSE_TYPE QUIET -CATALOG_TYPE ASCII_HEAD"
    )
    subprocess.run(["source-extractor", *words.split()], cwd=path, check=True)
    found = np.loadtxt(path / "out.cat")
    distance, index = cKDTree(found[:, :2] - 1).query(stars)
    return np.where(distance < 1, found[index, 3], np.nan)


class Log:
    """Lines of the table, printed as soon as they are known and kept in a file that a later call goes on with."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known = path.read_text().splitlines() if path and path.exists() else []
        self.missed = 0

    def line(self, title: str, make: Callable[[], str]) -> None:
        """Print the line that begins with `title`; a figure outside of its limits is followed by ``*``."""
        line = next((one for one in self.known if one.startswith(title)), None)
        if line is None:
            line = title + make()
            if self.path:
                with self.path.open("a") as file:
                    file.write(line + "\n")
        self.missed += line.count("*")
        print(line, flush=True)


def cell_line(cell: Cell, samples: int, seed: int) -> str:
    text = []
    for count, value, error in ratio(cell, samples, 640, seed).values():
        text.append(f"{value:.3f}+-{error:.3f} ({count}){' ' if LOW <= value <= HIGH else '*'}")
    return " ".join(text)


def example_line(kernel: Kernel, dithered: bool, seed: int) -> str:
    scatter, error = example(kernel, dithered, seed=seed)
    good = dithered or LOW < error / (1 / 30) < HIGH
    return f"scatter {100 * scatter:.2f} %, by UNCERT {100 * error:.2f} %{' ' if good else '*'}"


def programs_line(seed: int) -> str:
    text = []
    for name, value, error in programs(seed):
        good = abs(value - 1) <= 0.05 + 2 * error
        text.append(f"{name} {value:.3f}+-{2 * error:.3f}{' ' if good else '*'}")
    return ", ".join(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="no N = 50, fewer stars")
    parser.add_argument("--samples", type=int, default=10_000, help="apertures of a cell")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stars", action="store_true", help="the cells with stars alone")
    parser.add_argument("--log", type=Path, help="file of the lines, which a later call goes on with")
    args = parser.parse_args()
    print(f"photutils counts partial pixels {'squared' if SQUARED else 'in proportion'}")
    print("  N kernel   rot  sky/e- gain  read FWHM   star/e-  ratio for radii of 1, 2.5 and 5 FWHM (apertures)")
    log, began = Log(args.log), time.perf_counter()
    for cell in cells(args.quick):
        if args.stars and not cell.flux:
            continue
        title = (
            f"{cell.n:3d} {cell.kernel:8s} {cell.rotation:3.1f} {cell.sky:7.0f} {cell.gain:4.1f} {cell.rdnoise:5.0f}"
            f" {cell.fwhm:4.0f} {cell.flux:9.0f} {'scaled' if cell.spread else ''} "
        )
        samples = args.samples // 20 if cell.flux and args.quick else args.samples
        log.line(title, partial(cell_line, cell, samples, args.seed))
    for kernel, dithered in (("nearest", False), ("lanczos3", True)):
        title = f"nine frames, 100 counts, photon noise alone, {kernel}{', dithered' if dithered else ''}: "
        log.line(title, partial(example_line, kernel, dithered, args.seed))  # type: ignore[arg-type]
    log.line("equal stars through the whole pipeline, error over scatter: ", partial(programs_line, args.seed))
    print(f"{log.missed} outside of their limits; {time.perf_counter() - began:.0f} s")
    return int(log.missed > 0)


if __name__ == "__main__":
    sys.exit(main())
