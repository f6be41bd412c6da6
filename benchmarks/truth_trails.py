"""Satellite trails of known strength: how many are found, and how many that are not there.

    python benchmarks/truth_trails.py [--nights 6] [--seed 700]

Single frames of hard nights (`truth_stack.py`), without other artefacts, each with one line across it at random, as
wide as the stars. A trail is found where no point of its line is further than 4 px from the true one.

Exits non-zero where one of 2 sigmas a pixel or more is not found, or where anything else is taken for one.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from truth_stack import clean, hard

from fastack import background
from fastack.render import moffat_alpha
from fastack.simulate import simulate_night
from fastack.trails import find_trails

PEAKS = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 20.0)  # on the line, sigmas of a pixel


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=6)
    parser.add_argument("--seed", type=int, default=700)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    count = {(peak, wide): np.zeros(3, int) for peak in PEAKS for wide in (False, True)}
    for seed in range(args.seed, args.seed + args.nights):
        options = clean(hard(8, seed))
        night = simulate_night(options)
        ny, nx = options.shape
        for frame in night.frames:
            fwhm = frame.truth.fwhm
            noise = np.sqrt(frame.truth.sky + options.rdnoise**2) / options.gain
            for peak in PEAKS:
                angle, x0, y0 = rng.uniform(0, np.pi), rng.uniform(0.2, 0.8) * nx, rng.uniform(0.2, 0.8) * ny
                cos, sin = np.cos(angle), np.sin(angle)
                distance = (np.arange(ny)[:, None] - y0) * cos - (np.arange(nx) - x0) * sin
                light = peak * noise * (1 + (distance / moffat_alpha(fwhm, options.beta)) ** 2) ** (0.5 - options.beta)
                image = (frame.image + light).astype(np.float32)
                good = 0
                found = find_trails(image, background=background.estimate(image), fwhm=fwhm)
                for trail in found:
                    x, y = trail.points().T
                    good += bool(peak and np.abs((y - y0) * cos - (x - x0) * sin).max() < 4)
                count[peak, fwhm > 3] += [1, good > 0, len(found) - good]
    missed = 0
    print(f"{'peak':>4s}  {'seeing':7s} {'trails':>6s} {'found':>6s} {'false':>6s}")
    for (peak, wide), (trails, good, false) in count.items():
        bad = bool(false > 0 or (peak >= 2 and good < trails))
        missed += bad
        print(f"{peak:4.1f}  {'3-6 px' if wide else '2-3 px':7s} {trails:6d} {good:6d} {false:6d}{'  MISSED' * bad}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
