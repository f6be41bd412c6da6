"""The whole stack against truth, on simulated nights.

    python benchmarks/truth_stack.py [--seeds 3] [--only registration noise flux artefacts fwhm bits]

Every night is rendered, written as FITS files and stacked by the same call that the command line makes. The
error-free stack that products are compared with is made of the error-free frames: each through the transform
that the run itself fitted, averaged with the run's scales and weights. Pairs of nights share their noise, bit
by bit, and differ in one thing only (rejection, or cosmic rays, hot pixels and trails).

registration  error of the fitted transforms at the frames' corners; beside the Cramer-Rao bound of the
              positions of the stars that were measured in both frames, propagated through a weighted fit
noise         standard deviation of (stack - error-free stack) in units of what photon and read noise of the
              frames allow, after the same interpolation; and the UNCERT plane in the same units
flux          slope of ln(flux in the stack) against ln(true flux), weighted by the photon noise; and what the
              rejection takes from bright stars of frames without artefacts
artefacts     3x3 groups more than 5 of their own sigmas above their error-free value at cosmic rays, hot pixels
              and trails, in connected places; pixels beyond 6 sigma elsewhere off the stars
fwhm          width of the stars in the stack beside that of the mean of the frames' true profiles
bits          planes of the product for 1, 2, 3 and 8 threads and 100 MB and 2 GB of memory

Exits non-zero where a target is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from quality import check_product
from scipy import ndimage
from scipy.spatial import cKDTree

import fastack
from fastack.executor import available_threads
from fastack.render import render_stars
from fastack.simulate import NightOptions, simulate_night


@dataclass(frozen=True)
class Row:
    """One figure of the table."""

    figure: str
    value: float
    low: float  # 95 % interval of the value
    high: float
    target: str
    met: bool
    seeds: str

    def __str__(self) -> str:
        verdict = "met" if self.met else "MISSED"
        interval = f"{self.low:.4g} to {self.high:.4g}" if self.low < self.high else "-"
        return f"{self.figure:76s} {self.value:9.4g}  {interval:22s} {self.target:14s} {verdict:7s} {self.seeds}"


def at_most(figure: str, values: np.ndarray, limit: float, seeds: range, mean: Callable = np.mean) -> Row:
    """A row whose value is `mean` over nights; bootstrap over the nights."""
    values = np.atleast_1d(np.asarray(values, float))
    low, high = bootstrap(values, mean)
    value = float(mean(values))
    return Row(figure, value, low, high, f"<= {limit:g}", value <= limit, name(seeds))


def within(figure: str, values: np.ndarray, centre: float, reach: float, seeds: range) -> Row:
    """A row whose mean over nights has to lie within `reach` of `centre`."""
    values = np.atleast_1d(np.asarray(values, float))
    low, high = bootstrap(values, np.mean)
    value = float(np.mean(values))
    return Row(figure, value, low, high, f"{centre:g} +- {reach:g}", abs(value - centre) <= reach, name(seeds))


def bootstrap(values: np.ndarray, mean: Callable, draws: int = 1000) -> tuple[float, float]:
    """95 % interval of `mean` over resampled `values`."""
    rng = np.random.default_rng(0)
    drawn = [mean(rng.choice(values, len(values))) for _ in range(draws)]
    return float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def name(seeds: range) -> str:
    return f"{seeds[0]}-{seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}"


# Nights --------------------------------------------------------------------------------------------------


def hard(n: int, seed: int, side: int = 768) -> NightOptions:
    """Seeing that varies threefold, a quarter of the frames turned by 180 degrees, 2 degrees of rotation."""
    fwhm = np.geomspace(2.0, 6.0, n)
    np.random.default_rng(seed).shuffle(fwhm)
    return NightOptions(
        n_frames=n,
        shape=(side, side + 60),
        seed=seed,
        n_stars=side * side // 3600,
        separation=44.0,
        flux=(2000.0, 250_000.0),
        slope=0.5,
        fwhm=tuple(fwhm),
        rotation=2.0,
        flipped=0.25,
        dither=6.0,
        drift=(20.0, -12.0),
        transparency_spread=0.15,
        sky_spread=0.1,
        sky_gradient=0.0,
        cosmic_rays=side / 12,
        hot_pixels=side // 8,
        trails=0.2,
    )


def clean(options: NightOptions) -> NightOptions:
    """The same night, noise included, without artefacts."""
    return replace(options, cosmic_rays=0, hot_pixels=0, trails=0)


class Stacked:
    """A night, its stack, and the stack that error-free frames would have made."""

    def __init__(self, options: NightOptions, **settings: object) -> None:
        self.night = simulate_night(options, threads=available_threads())
        with tempfile.TemporaryDirectory() as directory:
            self.night.write(directory)
            self.result = fastack.stack(directory, **{"framing": "intersection"} | settings)
        self.index = {f"d{k + 1:04d}.fits": k for k in range(options.n_frames)}
        origin = self.result.grid.origin if self.result.grid else (0.0, 0.0)
        self.transforms = [r.transform.shifted(*origin) for r in self.result.used]

    def truth_of(self, record: fastack.types.FrameRecord):
        return self.night.truth.frames[self.index[record.name]]

    @property
    def reference(self):
        """Truth of the reference frame."""
        return self.night.truth.frames[self.index[self.result.reference]]

    def places(self) -> np.ndarray:
        """(n, 2) true positions of the stars in the stack."""
        return self.reference.to_frame(self.night.truth.xy) - self.result.grid.origin

    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        """Error-free stack, and its standard deviation from photon and read noise."""
        options, shape = self.night.options, self.result.shape
        how = self.result.options.resample
        total, variance, weight = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        pedestal = next(r.sky for r in self.result.records if r.name == self.result.reference)
        for r, to_frame in zip(self.result.used, self.transforms, strict=True):
            ideal = self.night.expected(self.index[r.name])
            # 1/12: the analogue-to-digital converter rounds
            spread = (ideal - options.bias) / options.gain + (options.rdnoise / options.gain) ** 2 + 1 / 12
            image, noise = fastack.resample(
                ideal - np.float32(r.sky), to_frame, shape=shape, variance=spread, options=how
            )
            known = np.isfinite(image)
            total[known] += r.weight * (pedestal + r.scale * image[known].astype(float))
            variance[known] += (r.weight * r.scale) ** 2 * noise[known]
            weight[known] += r.weight
        with np.errstate(invalid="ignore", divide="ignore"):
            return total / weight, np.sqrt(variance) / weight

    def artefacts(self) -> np.ndarray:
        """Map of the stack's pixels within a kernel's reach of an artefact, in any frame."""
        shape = self.result.shape
        hit = np.zeros(shape, bool)
        for r, to_frame in zip(self.result.used, self.transforms, strict=True):
            pixels = self.night.artefacts(self.index[r.name]).pixels
            if len(pixels):
                x, y = np.rint(to_frame.inverse(np.stack([pixels["x"], pixels["y"]], axis=1))).astype(int).T
                ok = (x >= 0) & (y >= 0) & (x < shape[1]) & (y < shape[0])
                hit[y[ok], x[ok]] = True
        return ndimage.binary_dilation(hit, np.ones((3, 3)), iterations=3)


# Figures -------------------------------------------------------------------------------------------------


def registration(seeds: range) -> Iterator[Row]:
    for model, label in (("affine", "affine"), ("auto", "model chosen by itself")):
        ratios, corner = [], []
        for seed in seeds:
            s = Stacked(
                NightOptions(
                    n_frames=8, shape=(1024, 1024), seed=seed, n_stars=100, flux=(3200.0, 300_000.0), slope=0.7,
                    separation=30.0, fwhm=3.0, rotation=1.5, dither=8.0, flipped=0.25,
                ),
                model=model,
                dry_run=True,
                **{"framing": "union"},
            )  # fmt: skip
            error, bound = corner_errors(s)
            ratios.append(rms(error / bound))
            corner.append(rms(error))
        title = f"registration, 100 stars of SNR >= 50, {label}:"
        yield at_most(f"{title} error / bound", ratios, 1.2, seeds, rms)
        yield at_most(f"{title} px", corner, 0.02, seeds, rms)
    ratios = []
    for seed in seeds:
        s = Stacked(hard(10, seed), dry_run=True, model="affine")
        error, bound = corner_errors(s)
        ratios.append(rms(error / bound))
    yield at_most("registration, hard night of 10, affine: error / bound", ratios, 1.2, seeds, rms)


def corner_errors(s: Stacked) -> tuple[np.ndarray, np.ndarray]:
    """(m, 4, 2) errors at the corners, pixel, and (m, 4, 1) Cramer-Rao bounds per axis."""
    ny, nx = s.night.options.shape
    corners = np.array([[0, 0], [nx - 1, 0], [0, ny - 1], [nx - 1, ny - 1]], float)
    reference = next(r for r in s.result.records if r.name == s.result.reference)
    base = bounds(s, reference)
    errors, limits = [], []
    for r in s.result.used:
        if r is reference:
            continue
        truth = s.truth_of(r).to_frame(s.reference.to_reference(corners))
        errors.append(r.transform(corners) - truth)
        other = bounds(s, r)
        both = np.isfinite(base) & np.isfinite(other)
        places = s.reference.to_frame(s.night.truth.xy[both])
        design = np.column_stack([np.ones(len(places)), places - corners.mean(axis=0)])
        at = np.column_stack([np.ones(4), corners - corners.mean(axis=0)])
        normal = (design / (base[both] ** 2 + other[both] ** 2)[:, None]).T @ design
        limits.append(np.sqrt(np.einsum("ij,jk,ik->i", at, np.linalg.inv(normal), at)))
    return np.array(errors), np.array(limits)[..., None]


def bounds(s: Stacked, record: fastack.types.FrameRecord) -> np.ndarray:
    """(n,) Cramer-Rao bounds per axis of the true stars in one frame; NaN for those that were not measured."""
    options, truth = s.night.options, s.truth_of(record)
    xy = truth.to_frame(s.night.truth.xy)
    distance, _ = cKDTree(record.stars.xy).query(xy, distance_upper_bound=1.0)
    out = np.full(len(xy), np.nan)
    half = int(5 * truth.fwhm) + 4
    profile = {"fwhm": truth.fwhm, "beta": truth.beta}
    for i in np.flatnonzero(np.isfinite(distance)):
        flux = s.night.truth.flux[i] * truth.transparency
        centre = half + xy[i] - np.rint(xy[i])

        def star(dx: float, dy: float, centre=centre, flux=flux) -> np.ndarray:
            return render_stars((2 * half + 1,) * 2, [centre + np.array([dx, dy])], [flux], **profile).astype(float)

        light, h = star(0, 0), 0.02
        x, y = (star(h, 0) - star(-h, 0)) / (2 * h), (star(0, h) - star(0, -h)) / (2 * h)
        derivatives = np.stack([v.ravel() for v in (x, y, light / flux, np.ones_like(light))])
        noise = light.ravel() + truth.sky + options.rdnoise**2 + options.gain**2 / 12
        covariance = np.linalg.inv(derivatives / noise @ derivatives.T)
        out[i] = np.sqrt((covariance[0, 0] + covariance[1, 1]) / 2)
    return out


def noise(seeds: range) -> Iterator[Row]:
    for n in (10, 30):
        spread, honest, offset, lost = [], [], [], []
        for seed in seeds:
            s = Stacked(hard(n, seed))
            truth, sigma = s.expected()
            data, claimed = s.result.data, s.result.uncertainty
            use = np.isfinite(data) & np.isfinite(truth) & ~s.artefacts()
            pull = ((data - truth) / sigma)[use]
            spread.append(pull.std())
            offset.append(pull.mean())
            honest.append(np.median(claimed[use] / sigma[use]))
            lost.append((~np.isfinite(data)).mean())
        title = f"noise, hard night of {n}:"
        yield within(f"{title} sigma / what photons and readout allow", spread, 1, 0.02, seeds)
        yield within(f"{title} UNCERT / the same", honest, 1, 0.02, seeds)
        yield within(f"{title} mean offset / sigma", offset, 0, 0.05, seeds)
        yield at_most(f"{title} part of the pixels missing", lost, 1e-4, seeds)


def flux(seeds: range) -> Iterator[Row]:
    for n in (10, 30):
        slopes = [slope(Stacked(hard(n, seed))) for seed in seeds]
        yield within(f"flux, hard night of {n}: slope of ln F against ln F true", slopes, 1, 0.002, seeds)
    for n in (2, 3, 5, 10, 30):
        worst, typical = [], []
        for seed in seeds:
            options = clean(hard(n, seed))
            kept, every = Stacked(options), Stacked(options, reject="none")
            a, b = (aperture_fluxes(s, radius=14.0) for s in (kept, every))
            bright = np.isfinite(a) & np.isfinite(b) & (kept.night.truth.flux > 1e5)
            if bright.any():  # turned frames share less of the field
                worst.append(np.abs(1 - a / b)[bright].max())
                typical.append((1 - a / b)[bright].mean())
        title = f"flux, artefact-free hard night of {n}, rejection takes"
        yield at_most(f"{title}: mean of bright stars, %", 100 * np.array(typical), 0.2, seeds)
        yield at_most(f"{title}: worst, %", 100 * np.array(worst), 0.2, seeds, np.max)


def aperture_fluxes(s: Stacked, radius: float) -> np.ndarray:
    """(n,) light of the true stars above a ring's median, ADU; NaN next to the border or to missing pixels."""
    data, half = s.result.data, int(1.6 * radius) + 2
    out = np.full(len(s.night.truth), np.nan)
    for i, (x, y) in enumerate(s.places()):
        column, row = round(x), round(y)
        if not (half <= column < data.shape[1] - half and half <= row < data.shape[0] - half):
            continue
        stamp = data[row - half : row + half + 1, column - half : column + half + 1].astype(float)
        r = np.hypot(np.arange(-half, half + 1) + column - x, (np.arange(-half, half + 1) + row - y)[:, None])
        inside = np.clip(radius + 0.5 - r, 0, 1)
        ring = stamp[(r > 1.25 * radius) & (r < 1.6 * radius)]
        if np.isfinite(stamp).all():
            out[i] = (inside * (stamp - np.median(ring))).sum()
    return out


def slope(s: Stacked) -> float:
    """Exponent of measured against true flux."""
    truth = s.night.truth.flux
    options = s.night.options
    measured = aperture_fluxes(s, radius=12.0)
    n = len(s.result.used)
    sky = np.mean([f.sky for f in s.night.truth.frames]) + options.rdnoise**2
    good = np.isfinite(measured) & (measured > 0)
    error = np.sqrt(truth / n + 1.5 * np.pi * 12**2 * sky / n) / truth
    good &= error < 0.1
    x, y, w = np.log(truth[good]), np.log(measured[good]), 1 / (error[good] ** 2 + 1e-6)
    x = x - np.average(x, weights=w)
    return float((w * x * y).sum() / (w * x * x).sum())


def artefacts(seeds: range) -> Iterator[Row]:
    for n, gradient in ((2, 0.0), (3, 0.0), (5, 0.0), (10, 0.0), (30, 0.0), (10, 0.1)):
        left, beside, outliers, hits = [], [], [], 0
        for seed in seeds:
            s = Stacked(replace(hard(n, seed), sky_gradient=gradient))
            truth, sigma = s.expected()
            data = s.result.data
            known = np.isfinite(data) & np.isfinite(truth)
            kept = s.result.plane("NCOMB") / len(s.result.used)  # of the samples: what is left has more noise
            pull = np.where(known, (data - truth) / sigma * np.sqrt(kept), 0)
            hit = s.artefacts() & known
            sky = ndimage.median_filter(truth[::8, ::8], 15).repeat(8, axis=0).repeat(8, axis=1)
            light = truth - sky[: truth.shape[0], : truth.shape[1]]
            dark = ~ndimage.binary_dilation(light > 0.5 * sigma, iterations=2)
            group = ndimage.uniform_filter(pull, 3)
            high = hit & (group > 5 * group[known & ~hit].std())
            left.append(count(high & dark))
            beside.append(count(high & ~dark))
            outliers.append(count(dark & known & ~hit & (np.abs(pull) > 6)))
            hits += count(hit)
        title = f"artefacts, hard night of {n}{', sky gradients of 10 %' if gradient else ''}:"
        yield at_most(f"{title} 3x3 above 5 sigma, sky, of {hits}", left, 0, seeds, np.sum)
        yield at_most(f"{title} the same on and beside stars", beside, 0, seeds, np.sum)
        yield at_most(f"{title} pixels beyond 6 sigma elsewhere", outliers, 0, seeds, np.sum)


def count(mask: np.ndarray) -> int:
    """Connected groups of pixels."""
    return int(ndimage.label(mask, np.ones((3, 3)))[1])


def fwhm(seeds: range) -> Iterator[Row]:
    for width in (2.5, 3.0, 4.0):
        ratios = []
        for seed in seeds:
            options = NightOptions(
                n_frames=10, shape=(700, 720), seed=seed, n_stars=160, flux=(20_000.0, 250_000.0), separation=36.0,
                fwhm=width, fwhm_spread=0.1, rotation=1.5, dither=4.0,
            )  # fmt: skip
            s = Stacked(options)
            ratios.append(check_product(s.result.data, s.night)["fwhm_ratio"])
        yield at_most(f"fwhm {width:g} px: stack / mean of the true profiles", ratios, 1.03, seeds)
    ratios = []
    for seed in seeds:
        s = Stacked(hard(10, seed))
        ratios.append(check_product(s.result.data, s.night)["fwhm_ratio"])
    yield at_most("fwhm 2 to 6 px, hard night of 10: the same", ratios, 1.03, seeds)


def bits(seeds: range) -> Iterator[Row]:
    planes = ("", "UNCERT", "NCOMB", "WEIGHT", "FLAGS")
    seeds = seeds[:1]
    options = hard(10, seeds[0], side=1024)
    with tempfile.TemporaryDirectory() as directory:
        simulate_night(options, threads=available_threads()).write(directory)
        runs = [{"threads": t} for t in (1, 2, 3, 8)]
        runs += [{"memory": 100_000_000}, {"memory": 2_000_000_000}, {"memory": 100_000_000, "threads": 3}]
        first, unlike = None, 0
        for settings in runs:
            result = fastack.stack(directory, **settings)
            found = [result.plane(plane).tobytes() for plane in planes]
            first = first or found
            unlike += found != first
    yield at_most(f"bits: of {len(runs)} runs of 10 x 1024 x 1084, unlike the first", [unlike], 0, seeds)


def main() -> int:
    """Print the table."""
    figures = {f.__name__: f for f in (registration, noise, flux, artefacts, fwhm, bits)}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=figures, default=list(figures))
    args = parser.parse_args()
    seeds = range(args.first, args.first + args.seeds)
    print(f"{'figure':76s} {'value':>9s}  {'95 % interval':22s} {'target':14s} verdict seeds")
    missed = []
    for figure in args.only:
        start = time.perf_counter()
        for row in figures[figure](seeds):
            print(row, flush=True)
            missed += [] if row.met else [row.figure]
        print(f"  ({time.perf_counter() - start:.0f} s)", file=sys.stderr, flush=True)
    print(f"{len(missed)} missed" if missed else "all met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
