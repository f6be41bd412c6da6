"""Slow twins of the combining kernels, float64, one pixel at a time."""

from __future__ import annotations

import numpy as np
from scipy import ndimage, stats


def keep_sigma(x, low, high, rounds, centre=np.mean, width=np.std):
    """Clip about `centre` by `width`; what is out stays out."""
    keep = np.isfinite(x)
    for _ in range(rounds):
        if not keep.any():
            break
        c, s = centre(x[keep]), width(x[keep])
        new = keep & (x >= c - low * s) & (x <= c + high * s)
        if (new == keep).all():
            break
        keep = new
    return keep


def mad(x):
    return 1.4826022 * np.median(np.abs(x - np.median(x)))


def winsorized(x):
    centre, sigma = np.median(x), np.std(x)
    for _ in range(10):
        sigma = 1.134 * np.std(np.clip(x, centre - 1.5 * sigma, centre + 1.5 * sigma))
    return sigma


def keep_percentile(x, low, high):
    c = np.median(x[np.isfinite(x)]) if np.isfinite(x).any() else np.nan
    return (x >= c - low * abs(c)) & (x <= c + high * abs(c))


def drop_ends(x, n_low, n_high):
    """Drop the lowest and the highest; of equal ones the earlier frame's go first, at the lower end first."""
    keep = np.isfinite(x)
    keep[np.argsort(np.where(keep, x, np.inf), kind="stable")[:n_low]] = False
    keep[np.argsort(np.where(keep, -x, np.inf), kind="stable")[:n_high]] = False
    return keep


def keep_minmax(x, n_low, n_high):
    enough = np.isfinite(x).sum() > n_low + n_high
    return drop_ends(x, n_low, n_high) if enough else np.isfinite(x)


def keep_linear_fit(x, low, high, rounds):
    s = np.sort(x[np.isfinite(x)])
    a, b = 0, len(s)
    for _ in range(rounds):
        if b - a <= 3:
            break
        rank = np.arange(b - a)
        off = s[a:b] - np.polyval(np.polyfit(rank, s[a:b], 1), rank)
        sigma = np.abs(off).mean()
        good = np.flatnonzero((off >= -low * sigma) & (off <= high * sigma))
        if not len(good):
            break
        a, b = a + good[0], a + good[-1] + 1
    return drop_ends(x, a, len(s) - b)


def keep_esd(x, part, significance):
    s = np.sort(x[np.isfinite(x)])
    total, a, b, low, high = len(s), 0, len(s), 0, 0
    for _ in range(int(part * total)):
        m = b - a
        if m < 3:
            break
        t = stats.t.ppf(1 - significance / (2 * m), m - 2)
        critical = (m - 1) * t / np.sqrt((m - 2 + t * t) * m)
        under, over = s[a:b].mean() - s[a], s[b - 1] - s[a:b].mean()
        sigma = s[a:b].std(ddof=1)
        a, b = (a + 1, b) if under > over else (a, b - 1)
        if max(under, over) > critical * sigma:
            low, high = a, total - b
    return drop_ends(x, low, high)


def first_stack(cube, k, frames, pedestal, kappa):
    """Mean of every pixel where no sample is too far from it, else lower median; sigma by the mean noise model."""
    weight, shot, sky, floor = frames[:4, :, None, None]
    here = np.isfinite(cube)
    n = here.sum(0)
    w = np.where(here, weight, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (w * np.where(here, cube, 0)).sum(0) / w.sum(0)
        noise = k * (shot * np.maximum(mean - pedestal + sky, 0) + floor)
        seen = k * np.maximum(shot * (mean - pedestal + sky) + floor, 0.25 * floor)
        of_mean = (w**2 * seen).sum(0) / w.sum(0) ** 2
        share = 2 * weight.max() / weight.min() / n
        near = (cube - mean) ** 2 <= kappa**2 * (0.9999 * noise * (1 - share) + 0.999 * of_mean)
    quiet = (n > 2) & (near | ~here).all(0)
    median = np.take_along_axis(np.sort(cube, axis=0), np.maximum(n - 1, 0)[None] // 2, 0)[0]
    value = np.where(quiet, mean, median)
    variance = shot.mean() * np.maximum(value - pedestal, 0) + (shot * np.maximum(sky, 0) + floor).mean()
    return value, np.sqrt(variance * np.where(n <= 2, 1, np.where(quiet, 1, np.pi / 2) / np.maximum(n, 1))), quiet


def structure(value, sigma, radius):
    """What of the first stack's curvature and range noise does not explain."""
    side = 2 * radius + 1
    here = np.isfinite(value)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = ndimage.uniform_filter(np.where(here, value, 0), side, mode="constant") / ndimage.uniform_filter(
            here.astype(float), side, mode="constant"
        )
    curvature = np.where(here, mean - value, 0)
    bend = ndimage.maximum_filter(np.abs(curvature), 3, mode="constant")
    high = ndimage.maximum_filter(np.where(here, value, -np.inf), 3, mode="constant", cval=-np.inf)
    low = ndimage.minimum_filter(np.where(here, value, np.inf), 3, mode="constant", cval=np.inf)
    span = np.where(high > low, high - low, 0)
    real = bend > 3.5 * sigma
    return (
        np.where(real, curvature, 0),
        np.where(real, bend, 0),
        np.where(span > 5.5 * sigma, span - 3 * sigma, 0),
    )


def lower_median(x):
    x = np.sort(x[np.isfinite(x)])
    return x[(len(x) - 1) // 2] if len(x) else np.nan


def keep_noise(x, local, k, frames, pedestal, kappa, rounds, near=None, shift=0.0, extra=0.0):
    """Which samples of one pixel the noise model and the structure of the stack allow."""
    start, curvature, bend, span = local
    weight, shot, sky, floor, seeing, tolerance, jitter = frames
    low, high, pair, grow, _ = kappa
    x = x - seeing * curvature - shift
    here = np.isfinite(x)
    n = here.sum()
    if not n:
        return here
    sure, allowance, slack = here, tolerance * bend + jitter * span + extra, 0.0
    if near is not None:
        sure = here & (near == 0) if (here & (near == 0)).any() else here
    if near is not None or allowance.any():
        start = lower_median(np.where(sure, x, np.nan))
        slack = allowance[x == start].max()

    def noise_at(level):
        return k * (shot * np.maximum(level - pedestal + sky, 0) + floor)

    value, variance = start, noise_at(start)
    of_value = variance[here].sum() if n == 2 else np.pi / 2 * variance[here].sum() / n / sure.sum()
    share = np.zeros(len(x))  # of a sample in the value that it is held against
    own, keep = float(n != 2), np.zeros(len(x), bool)
    for _ in range(rounds + 1):
        variance = noise_at(value)
        spread = np.maximum(variance * (own - 2 * share) + of_value, 1e-3 * variance)
        limit = np.where(x > value, pair if n == 2 else high, 1e15 if n <= 2 else low)
        if near is not None:
            limit = np.where(near > 0, np.minimum(limit, grow or np.inf), limit)
        with np.errstate(invalid="ignore"):
            distance = np.maximum(np.abs(x - value) - allowance - slack, 0)
            new = here & (distance**2 <= limit**2 * spread)
        if near is not None:
            new &= near < 2
        if not new.any():
            return here & (x == start)
        if (new == keep).all():
            break
        keep = new
        w = np.where(keep, weight * variance / (variance + allowance**2), 0)
        value = (w * np.where(keep, x, 0)).sum() / w.sum()
        of_value = (w**2 * np.where(keep, variance, 0)).sum() / w.sum() ** 2
        share, own, slack = w / w.sum(), 1.0, (w * allowance).sum() / w.sum()
    return keep


def patches(frame, start, known, pedestal, y, x, sign):
    """Excess of a frame over the first stack in eight patches around (y, x); light of the stack that is not known."""
    excess, light = [], 0.0
    for dy, dx in ((a, b) for a in (-3, 0, 3) for b in (-3, 0, 3)):
        at = np.s_[max(y + dy - 1, 0) : max(y + dy + 2, 0), max(x + dx - 1, 0) : max(x + dx + 2, 0)]
        some, good = np.isfinite(start[at]), np.isfinite(frame[at])
        if some.any():
            light = max(light, (start[at] - known[at] - pedestal)[some].mean())
        if good.any() and (dy or dx):
            excess.append(sign * (frame[at] - start[at])[good].mean())
    return np.sort(excess), light


def smooth_excess(frame, start, known, pedestal, y, x, distance):
    """What a frame's surroundings of (y, x) have in excess of the first stack, if that has light there."""
    excess, light = patches(frame, start, known, pedestal, y, x, np.sign(distance))
    if len(excess) < 3 or light < 0.5 * abs(distance):
        return 0.0
    return np.sign(distance) * np.clip(lower_median(excess), 0, abs(distance))


def find_groups(cube, keep, first, maps, known, allowance, frames, pedestal, kappa):
    """Centres (frame, y, x) of 3x3 pixels that are too far from the first average, and their mean distance."""
    n = len(cube)
    shot, sky, floor = frames[1:4, :, None, None]
    kept = np.where(keep, cube - first, 0)
    variance = shot * np.maximum(first - pedestal + sky, 0) + floor  # before interpolation
    sigma = np.sqrt(variance)
    here = np.isfinite(cube)
    clipped = np.where(here, np.clip(cube - first, -kappa[0] * sigma, kappa[1] * sigma), 0)
    share = np.where(keep, 1 - 1 / n, 1 + 1 / n)

    def total(a):
        return ndimage.correlate(np.where(here, a, 0), np.ones((1, 3, 3)), mode="constant")

    bare = 9 * (1 - 1 / n) * (shot * np.maximum(sky, 0) + floor)
    candidates = (np.abs(total(cube - first)) > kappa[4] * np.sqrt(bare)).any(0)
    sums, parts, allowed, spread = total(clipped), total(kept), total(allowance), np.sqrt(total(variance * share))
    count = total(np.ones(cube.shape))
    found = []
    for y, x in np.argwhere(candidates):
        left = [i for i in range(n) if count[i, y, x]]
        excess, part = sums[:, y, x].copy(), parts[:, y, x]
        slack = allowed[:, y, x].sum() / len(left)
        while len(left) > 1:
            sigmas = (np.abs(excess) - allowed[:, y, x] - slack) / spread[:, y, x]
            able = [i for i in left if len(left) > 2 or excess[i] >= 0]
            worst = max(able, key=lambda i: sigmas[i], default=None)
            if worst is None or sigmas[worst] <= kappa[4]:
                break
            number, sign = count[worst, y, x], np.sign(excess[worst])
            mean = abs(excess[worst]) / number
            around, light = patches(cube[worst], maps[0], known, pedestal, y, x, sign)
            base = 0.0 if len(around) < 3 else mean if light >= 0.5 * mean else max(around[1], 0)
            if mean * number - allowed[worst, y, x] - slack - base * number > kappa[4] * spread[worst, y, x]:
                found.append((worst, y, x, mean))
            left.remove(worst)
            excess += part[worst] / len(left)
    return found


def reject_noise(cube, k, frames, pedestal, radius, kappa, rounds, stars=None, star_error=0.0, grow=0):
    """Kept samples of a whole cube, the second look included; `stars`: their mean light and each frame's difference."""
    n, *shape = cube.shape
    known, difference = stars if stars is not None else (np.zeros(shape), np.zeros(cube.shape))
    cube = cube - difference
    start, sigma, quiet = first_stack(cube, k, frames, pedestal, min(kappa[:2]))
    darkest = pedestal - 5 * np.sqrt((frames[1] * np.maximum(frames[2], 0) + frames[3]).mean())
    level = np.maximum(start, darkest)
    maps = np.stack([start, *structure(level - known, sigma, radius)[:2], structure(level, sigma, radius)[2]])
    extra = star_error * np.abs(difference)
    keep = np.zeros(cube.shape, bool)
    for y, x in np.ndindex(*shape):
        args = (k[:, y, x], frames, pedestal, kappa, rounds)
        keep[:, y, x] = keep_noise(cube[:, y, x], maps[:, y, x], *args, extra=extra[:, y, x])
    first = average(cube, keep, frames[0])

    strength, shift = np.zeros(cube.shape), np.zeros(cube.shape)  # of the artefact next to a sample
    near = np.zeros(cube.shape, int)
    marked = np.zeros(cube.shape, bool)

    noise = k * (frames[1][:, None, None] * np.maximum(start - pedestal + frames[2][:, None, None], 0))
    noise += k * frames[3][:, None, None]
    settled = quiet & (maps[2] == 0) & (maps[3] == 0) & (known == 0)
    with np.errstate(invalid="ignore"):
        calm = settled & ~((cube - start) ** 2 > (0.8 * kappa[3]) ** 2 * noise)

    def mark(i, y, x, reach, excess, distance, kind):
        for v in range(max(y - reach, 0), min(y + reach + 1, shape[0])):
            for u in range(max(x - reach, 0), min(x + reach + 1, shape[1])):
                if kind == 1 and calm[i, v, u] and (v, u) != (y, x):
                    continue
                if not marked[i, v, u] or abs(excess) < abs(shift[i, v, u]):
                    shift[i, v, u] = excess
                marked[i, v, u] = True
                near[i, v, u] = max(near[i, v, u], kind)
                strength[i, v, u] = max(strength[i, v, u], distance)

    for i, y, x in np.argwhere(~keep & np.isfinite(cube)):
        distance = cube[i, y, x] - first[y, x]
        excess = smooth_excess(cube[i], start, known, pedestal, y, x, distance)
        smooth = abs(excess) > 0.4 * abs(distance)
        mark(i, y, x, 0 if smooth else 1, excess, 0 if smooth else abs(distance), 0 if smooth else 1)
    if kappa[4] and n > 1 and (n <= 20 or grow):
        seeing, tolerance, jitter = frames[4:, :, None, None]
        allowance = np.abs(seeing * maps[1]) + tolerance * maps[2] + jitter * maps[3] + extra
        for i, y, x, mean in find_groups(cube, keep, first, maps, known, allowance, frames, pedestal, kappa):
            mark(i, y, x, 1 + grow, 0.0, mean, 2)
    for y, x in np.argwhere(marked.any(0)):
        there = near[:, y, x].copy()
        if ((there > 0) & np.isfinite(cube[:, y, x])).sum() == np.isfinite(cube[:, y, x]).sum():
            there[np.arange(n) != (strength[:, y, x].argmax() if there.any() else -1)] = 0
        args = (k[:, y, x], frames, pedestal, kappa, rounds, there, shift[:, y, x], extra[:, y, x])
        keep[:, y, x] = keep_noise(cube[:, y, x], maps[:, y, x], *args)
    return keep


def average(x, keep, weight):
    """Weighted mean of the samples kept."""
    w = np.where(keep, weight.reshape(-1, *[1] * (x.ndim - 1)), 0)
    with np.errstate(invalid="ignore"):
        return (w * np.where(keep, x, 0)).sum(0) / w.sum(0)
