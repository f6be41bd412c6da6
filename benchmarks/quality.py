"""Is a stack what it claims? Figures of a product against the truth of the simulated night behind it.

Every figure is defined so that a product can be judged whatever its grid, unit, weights and kernel are:

* The grid is found from the stars: which frame was the reference, then a polynomial from true to product
  positions. Astrometry is the scatter of bright stars about it.
* The model is the mean of the frames' point-spread functions at the true positions, in the product's
  flux scale.
* Noise is that at zero spatial frequency: the autocovariance of the residual, summed over lags up to 4
  pixels. It does not change with the interpolation kernel; the noise of single pixels does, and a smoothing
  kernel hides it. It stands beside what the known photon and read noise of the frames allow, scaled to equal
  fluxes: with equal weights, and with the best ones.
* The flux exponent is the slope of ln(measured) against ln(true) aperture flux, weighted by the photon
  noise; the bright loss is what the brightest unsaturated stars lack against the others.
* Outliers are counted off the stars: 3x3 groups beyond 5 sigma where an artefact fell, pixels beyond 6
  elsewhere.
* FWHM is the median of Moffat fits to the same stars in the product and in the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage, optimize

from fastack.render import render_stars
from fastack.simulate import Night

LAGS = 4
EDGE = 12  # pixels next to the border of the area that all frames share, left out


@dataclass(frozen=True)
class Placed:
    """Where the true stars lie in the product."""

    reference: int  # frame whose grid the product has
    coefficients: Any  # (m, 2) polynomial from true to product positions
    order: int
    centre: Any
    rms: float  # of bright stars about the polynomial, per axis, pixel
    used: int

    def __call__(self, xy):
        return _polynomial(np.asarray(xy, float) - self.centre, self.order) @ self.coefficients


def check_product(image, night: Night) -> dict[str, float]:
    """Compare a stack with the truth.

    Parameters
    ----------
    image : (ny, nx) array_like
        Product in any unit that is linear in flux; NaN where no frame has data.
    night : Night
        What was stacked: frames without vignetting, or calibrated ones.

    Returns
    -------
    dict
        ``noise_equal``, ``noise_best`` (ratios to the optimum) and ``noise_err``, ``noise_pixel`` (of single
        pixels), ``flux_exponent`` and ``flux_exponent_err``, ``bright_loss`` and ``bright_loss_err``,
        ``artefacts`` and ``artefacts_left``, ``outliers``, ``fwhm``, ``fwhm_ratio``, ``astrometry`` (pixel),
        ``reference``, ``coverage``.
    """
    image = np.asarray(image, np.float64)
    placed = place(image, night)
    model = render_model(image.shape, night, placed)
    area = shared_area(image.shape, night, placed) & np.isfinite(image)
    if area.sum() < 10_000:
        raise ValueError("the product and the frames share no area to judge it by")
    apart = (image[::3, 16:] - image[::3, :-16])[area[::3, 16:] & area[::3, :-16]]
    pixel_noise = _spread(apart) / np.sqrt(2) or 1e-30

    stars = measure_fluxes(image, model, night, placed, area)
    scale = stars["scale"]
    # Off the stars: where their light is less than a tenth of the noise.
    dark = area & ~ndimage.binary_dilation(scale * model > 0.1 * pixel_noise, iterations=2)
    if dark.mean() < 0.05:
        dark = area & (scale * model < 0.5 * pixel_noise)
    residual = image - scale * model
    residual -= smooth_level(residual, dark)

    out: dict[str, float] = {
        "reference": placed.reference,
        "astrometry": placed.rms,
        "n_astrometry": placed.used,
    }
    out["coverage"] = float(np.isfinite(image).mean())
    out |= _noise(residual, dark, scale, night)
    out |= {key: value for key, value in stars.items() if key != "scale"}
    out |= _outliers(residual, dark, night, placed)
    out |= _widths(image, model, night, placed, area)
    return {key: float(value) for key, value in out.items()}


# Where is it? --------------------------------------------------------------------------------------------


def place(image, night: Night) -> Placed:
    """Find the product's grid from its stars."""
    found = find_stars(image)
    truth, shape = night.truth, night.options.shape
    best = (0, 0, np.zeros(2))
    for frame in truth.frames:
        predicted = frame.to_frame(truth.xy[: len(found)])
        predicted = predicted[((predicted > 0) & (predicted < np.array(shape[::-1]))).all(axis=1)]
        offset = (found[:, None] - predicted[None]).reshape(-1, 2)
        cells, counts = np.unique(np.rint(offset / 3).astype(int), axis=0, return_counts=True)
        if counts.max() > best[0]:
            best = (counts.max(), frame.index, cells[counts.argmax()] * 3.0)
    votes, index, shift = best
    if votes < 8:
        raise ValueError(f"the stars of the product are not those of the night: {votes} of {len(found)} agree")
    noise = optimum(night)[0] * 2 * np.mean([f.fwhm for f in truth.frames])
    bright = truth.xy[unsaturated(night) & (truth.flux > 100 * noise)][:400]
    if len(bright) < 12:
        bright = truth.xy[:100]
    guess = truth.frames[index].to_frame(bright) + shift
    order = 3 if night.options.distortion else 1
    use, centre = np.ones(len(bright), bool), bright.mean(axis=0)
    for reach in (8.0, 4.0, 2.0, 1.0):
        measured = np.array([centroid(image, p, reach if reach > 2 else 2.5) for p in guess])
        use = np.isfinite(measured).all(axis=1) & (np.hypot(*(measured - guess).T) < reach)
        for _ in range(5):
            fit = np.linalg.lstsq(_polynomial(bright[use] - centre, order), measured[use], rcond=None)[0]
            off = measured - _polynomial(bright - centre, order) @ fit
            limit = 4 * _spread(off[use].ravel()) + 1e-3
            use = np.isfinite(off).all(axis=1) & (np.abs(off) < limit).all(axis=1)
        guess = _polynomial(bright - centre, order) @ fit
    return Placed(index, fit, order, centre, float(np.sqrt(np.mean(off[use] ** 2))), int(use.sum()))


def find_stars(image, count: int = 150):
    """Brightest maxima that are wider than a pixel, (n, 2)."""
    filled = np.where(np.isfinite(image), image, np.nanmedian(image))
    smooth = ndimage.gaussian_filter(filled, 1.5) - np.median(filled)
    peak = (smooth == ndimage.maximum_filter(smooth, 9)) & (smooth > 10 * _spread(smooth.ravel()[::17]))
    y, x = np.nonzero(peak)
    brightest = np.argsort(-smooth[y, x])[:count]
    return np.stack([x[brightest], y[brightest]], axis=1).astype(float)


def centroid(image, xy, sigma: float):
    """Iterate a centroid in a Gaussian window; NaN off the image."""
    xy, half = np.array(xy, float), int(3 * sigma) + 3
    for _ in range(8):
        x, y = (round(v) for v in xy) if np.isfinite(xy).all() else (-9, -9)
        if not (half <= x < image.shape[1] - half and half <= y < image.shape[0] - half):
            return np.full(2, np.nan)
        stamp = image[y - half : y + half + 1, x - half : x + half + 1]
        border = np.concatenate([stamp[0], stamp[-1], stamp[:, 0], stamp[:, -1]])
        dx, dy = np.arange(-half, half + 1) + x - xy[0], (np.arange(-half, half + 1) + y - xy[1])[:, None]
        weight = np.exp(-(dx * dx + dy * dy) / (2 * sigma**2)) * (stamp - np.median(border))
        total = weight.sum()
        if not total > 0:
            return np.full(2, np.nan)
        step = np.array([(weight * dx).sum(), (weight * dy).sum()]) / total
        xy += 2 * step
        if np.abs(step).max() < 1e-4:
            break
    return xy


# What should be there? -----------------------------------------------------------------------------------


def render_model(shape, night: Night, placed: Placed, groups: int = 12):
    """Light of the stars in the product's grid, e- at transparency 1, with the frames' mean PSF."""
    frames = sorted(night.truth.frames, key=lambda f: f.fwhm)
    xy = placed(night.truth.xy)
    near = ((xy > -60) & (xy < np.array(shape[::-1]) + 60)).all(axis=1)
    model = np.zeros(shape)
    for part in np.array_split(np.arange(len(frames)), min(groups, len(frames))):
        fwhm = float(np.mean([frames[i].fwhm for i in part]))
        stars = render_stars(
            shape, xy[near], night.truth.flux[near], fwhm=fwhm, beta=night.options.beta, radius=10 * fwhm
        )
        model += stars * (len(part) / len(frames))
    return model


def shared_area(shape, night: Night, placed: Placed):
    """Pixels of the product that lie within every frame, away from its border."""
    y, x = np.mgrid[0 : shape[0] : 8, 0 : shape[1] : 8]
    grid = np.stack([x.ravel(), y.ravel()], axis=1).astype(float)
    linear = placed.coefficients[1:3]
    sky = placed.centre + (grid - placed.coefficients[0]) @ np.linalg.inv(linear)
    for _ in range(10):
        sky = sky + (grid - placed(sky)) @ np.linalg.inv(linear)
    ny, nx = night.options.shape
    inside = np.ones(len(grid), bool)
    for frame in night.truth.frames:
        u, v = frame.to_frame(sky).T
        inside &= (u > EDGE) & (u < nx - 1 - EDGE) & (v > EDGE) & (v < ny - 1 - EDGE)
    coarse = inside.reshape(x.shape)
    return np.repeat(np.repeat(coarse, 8, axis=0), 8, axis=1)[: shape[0], : shape[1]]


def optimum(night: Night) -> tuple[float, float]:
    """Sky noise of one pixel of an ideal stack with equal and with the best weights, e- at transparency 1."""
    options = night.options
    dark = options.dark * options.exposure
    variance = np.array([f.sky + dark + options.rdnoise**2 for f in night.truth.frames]) + options.gain**2 / 12
    scaled = variance / np.array([f.transparency for f in night.truth.frames]) ** 2
    return float(np.sqrt(scaled.sum()) / len(scaled)), float(1 / np.sqrt((1 / scaled).sum()))


def unsaturated(night: Night, part: float = 0.9):
    """(n,) stars whose peak stays below this part of the full well in every frame."""
    options = night.options
    room = (options.full_well - options.bias) * options.gain
    peak = np.zeros(len(night.truth))
    for frame in night.truth.frames:
        central = render_stars((9, 9), [(4, 4)], 1.0, fwhm=frame.fwhm, beta=frame.beta).max()
        peak = np.maximum(peak, night.truth.flux * frame.transparency * central + frame.sky)
    return peak < part * room


# Figures -------------------------------------------------------------------------------------------------


def _noise(residual, dark, scale, night):
    equal, best = optimum(night)
    good = np.where(dark, residual, 0.0)
    limit = 6 * _spread(residual[dark])
    use = dark & (np.abs(residual) < limit)
    good = np.where(use, residual, 0.0)
    total = 0.0
    for dy in range(LAGS + 1):
        for dx in range(-LAGS, LAGS + 1):
            if dy == 0 and dx < 0:
                continue
            a = (slice(dy, None), slice(max(0, dx), good.shape[1] + min(0, dx)))
            b = (slice(0, good.shape[0] - dy), slice(max(0, -dx), good.shape[1] - max(0, dx)))
            pairs = np.count_nonzero(use[a] & use[b])
            total += (1 if dx == dy == 0 else 2) * float((good[a] * good[b]).sum()) / pairs
    sigma = np.sqrt(total) / scale
    return {
        "noise_equal": sigma / equal,
        "noise_best": sigma / best,
        "noise_err": sigma / equal * (2 * LAGS + 1) * np.sqrt(2) / 2 / np.sqrt(use.sum()),
        "noise_pixel": float(good[use].std()) / scale / equal,
    }


def measure_fluxes(image, model, night: Night, placed: Placed, area):
    """Aperture fluxes of isolated unsaturated stars in product and model."""
    truth = night.truth
    xy = placed(truth.xy)
    fwhm = float(np.mean([f.fwhm for f in truth.frames]))
    radius = 2.5 * fwhm
    half = int(2 * radius) + 2
    inside = ((xy > half + 1) & (xy < np.array(image.shape[::-1]) - half - 2)).all(axis=1)
    noise = optimum(night)[0] * np.sqrt(np.pi) * radius
    wanted = inside & unsaturated(night) & (truth.flux > 10 * noise)
    rows = []
    for i in np.flatnonzero(wanted):
        x, y = np.rint(xy[i]).astype(int)
        cut = slice(y - half, y + half + 1), slice(x - half, x + half + 1)
        if not area[cut].all():
            continue
        r = np.hypot(
            np.arange(x - half, x + half + 1) - xy[i, 0],
            (np.arange(y - half, y + half + 1) - xy[i, 1])[:, None],
        )
        weight = np.clip(radius + 0.5 - r, 0, 1)
        if (weight * model[cut]).sum() > 1.2 * truth.flux[i]:
            continue  # mostly a neighbour's light
        ring = (r > 1.5 * radius) & (r < 2 * radius)
        rows.append([cut, weight, ring, truth.flux[i], (weight * model[cut]).sum()])
    if len(rows) < 10:
        raise ValueError(f"only {len(rows)} stars to judge fluxes by")
    flux, true = (np.array([row[k] for row in rows]) for k in (3, 4))
    # One sigma: photons of all frames together, and the sky in aperture and ring.
    error = np.sqrt(flux / len(truth.frames) + (1.4 * noise) ** 2) / flux
    brightest = np.argsort(error)[: max(10, len(rows) // 3)]
    scale = np.median([np.ptp(image[rows[i][0]]) / np.ptp(model[rows[i][0]]) for i in brightest])
    for _ in range(4):
        # The sky is taken from the residual: stars in the ring are in the model too.
        left = []
        for cut, weight, ring, *_ in rows:
            stamp = image[cut] - scale * model[cut]
            left.append((weight * (stamp - np.median(stamp[ring]))).sum())
        ratio = scale + np.array(left) / true
        scale = float(np.median(ratio[brightest]))
    good = np.abs(ratio / scale - 1) < 6 * error + 0.02
    x, y, w = np.log(flux[good]), np.log(ratio[good]), 1 / (error[good] ** 2 + 1e-3**2)
    mean = (w * x).sum() / w.sum()
    spread = (w * (x - mean) ** 2).sum()
    slope = (w * (x - mean) * y).sum() / spread
    order = np.argsort(-flux[good])
    top = order[: max(5, len(order) // 20)]
    rest = order[len(top) : len(order) // 2]
    level, level_err = _weighted(ratio[good][rest], w[rest])
    bright, bright_err = _weighted(ratio[good][top], w[top])
    return {
        "scale": scale,
        "flux_exponent": 1 + slope,
        "flux_exponent_err": 1 / np.sqrt(spread),
        "bright_loss": 1 - bright / level,
        "bright_loss_err": np.hypot(bright_err, level_err),
        "n_fluxes": good.sum(),
    }


def _outliers(residual, dark, night: Night, placed: Placed):
    inner = ndimage.binary_erosion(dark, np.ones((3, 3)))
    group = ndimage.uniform_filter(np.where(dark, residual, 0.0), 3)
    group_noise, noise = _spread(group[inner]), _spread(residual[dark])
    hit = np.zeros(dark.shape, bool)
    for index, frame in enumerate(night.truth.frames):
        pixels = night.artefacts(index).pixels
        if not len(pixels):
            continue
        spots = np.rint(placed(frame.to_reference(np.stack([pixels["x"], pixels["y"]], axis=1)))).astype(int)
        ok = ((spots >= 0) & (spots < np.array(dark.shape[::-1]))).all(axis=1)
        hit[spots[ok, 1], spots[ok, 0]] = True
    left = hit & inner & (np.abs(group) > 5 * group_noise)
    elsewhere = dark & ~ndimage.binary_dilation(hit, iterations=3) & (np.abs(residual) > 6 * noise)
    eight = np.ones((3, 3))
    return {
        "artefacts": ndimage.label(hit & inner, eight)[1],
        "artefacts_left": ndimage.label(left, eight)[1],
        "outliers": ndimage.label(elsewhere, eight)[1],
    }


def _widths(image, model, night: Night, placed: Placed, area, count: int = 60):
    """Median FWHM of Moffat fits to the same stars in product and model."""
    truth = night.truth
    xy = placed(truth.xy)
    fwhm = float(np.mean([f.fwhm for f in truth.frames]))
    half = int(np.ceil(2.5 * fwhm))
    found = []
    for i in np.flatnonzero(unsaturated(night, 0.5)):
        x, y = np.rint(xy[i]).astype(int)
        if not (half <= x < image.shape[1] - half and half <= y < image.shape[0] - half):
            continue
        cut = slice(y - half, y + half + 1), slice(x - half, x + half + 1)
        close = np.hypot(*(xy - xy[i]).T) < 2 * half
        if not area[cut].all() or truth.flux[close].sum() > 1.02 * truth.flux[i]:
            continue
        pair = [_fit_width(plane[cut], xy[i] - (x, y), fwhm) for plane in (image, model)]
        if np.isfinite(pair).all():
            found.append(pair)
        if len(found) == count:
            break
    if not found:
        return {"fwhm": np.nan, "fwhm_ratio": np.nan}
    seen, true = np.median(found, axis=0)
    return {"fwhm": seen, "fwhm_ratio": seen / true}


def _fit_width(stamp, centre, fwhm: float) -> float:
    half = len(stamp) // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]

    def residual(p):
        r2 = (x - p[2]) ** 2 + (y - p[3]) ** 2
        return (p[0] + p[1] * (1 + r2 / p[4] ** 2) ** -p[5] - stamp).ravel() / norm

    norm = stamp.max() - stamp.min()
    start = [stamp.min(), norm, *centre, fwhm, 3.0]
    fit = optimize.least_squares(residual, start, method="lm", max_nfev=300)
    return 2 * abs(fit.x[4]) * np.sqrt(2 ** (1 / fit.x[5]) - 1) if fit.success and fit.x[5] > 0 else np.nan


# Small ones ----------------------------------------------------------------------------------------------


def smooth_level(residual, use, cell: int = 128):
    """Sky on a mesh of medians, interpolated; what is left of gradients must not pass for noise."""
    ny, nx = residual.shape
    my, mx = max(1, ny // cell), max(1, nx // cell)
    level = np.full((my, mx), np.nan)
    for j, rows in enumerate(np.array_split(np.arange(ny), my)):
        for i, columns in enumerate(np.array_split(np.arange(nx), mx)):
            cut = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            values = residual[cut][use[cut]]
            if values.size > 200:
                level[j, i] = np.median(values)
    nearest = ndimage.distance_transform_edt(np.isnan(level), return_distances=False, return_indices=True)
    level = level[tuple(nearest)]
    at = np.meshgrid((np.arange(ny) + 0.5) * my / ny - 0.5, (np.arange(nx) + 0.5) * mx / nx - 0.5, indexing="ij")
    return ndimage.map_coordinates(level, at, order=1, mode="nearest")


def _polynomial(xy, order: int):
    x, y = xy[:, 0], xy[:, 1]
    return np.stack([x**i * y**j for total in range(order + 1) for j in range(total + 1) for i in [total - j]], axis=1)


def _weighted(values, weights):
    return (weights * values).sum() / weights.sum(), 1 / np.sqrt(weights.sum())


def _spread(values) -> float:
    """Robust standard deviation."""
    values = values[np.isfinite(values)]
    return float(1.4826 * np.median(np.abs(values - np.median(values))))
