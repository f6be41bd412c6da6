"""Peak memory of whole runs beside ``--memory``; prints a table and exits 1 where a run takes too much.

    python benchmarks/memory.py [--memory 300M] [--most 3000] [--packed]
    python benchmarks/memory.py --large --memory 2000M

Nights of 30 frames of 2048 x 2048, 300 of 1024 x 1024 and 3000 of 128 x 128 uint16 are simulated and stacked by the
command line, each in a process of its own. Peak: the largest resident size of that process. Allowed: ``--memory`` and
150 MB, which hold the interpreter, its libraries and the lists of stars. ``--packed``: the frames are gzip files, which
have to be kept between the passes, in memory or in the scratch file. ``--large``: three frames of 16384 x 16384, one
of which has to fit as float32.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import tempfile
from pathlib import Path

from watch import watch

from fastack.simulate import NightOptions, simulate_night

SETS = ((30, 2048, 400), (300, 1024, 200), (3000, 128, 25))  # frames, side, stars
LARGE = ((3, 16384, 3000),)
BESIDE = 150_000_000


def simulate(directory: Path, frames: int, side: int, stars: int, packed: bool) -> int:
    """Write a night; bytes of its pixels."""
    night = simulate_night(
        NightOptions(n_frames=frames, shape=(side, side), n_stars=stars, flux=(3000.0, 300_000.0), rotation=1.0)
    )
    night.write(directory)
    for path in list(directory.glob("d*.fits")) if packed else []:
        path.with_suffix(".fits.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
        path.unlink()
    return frames * side * side * 2


def run(directory: Path, memory: str) -> tuple[int, float, int]:
    """Peak in bytes, seconds and exit code of one stack."""
    names = sorted(str(path) for path in directory.glob("d*.fits*"))
    (directory / "list.txt").write_text("\n".join(names))
    command = [sys.executable, "-m", "fastack", "stack", f"@{directory}/list.txt", "-o", str(directory / "out.fits")]
    used = watch([*command, "--memory", memory, "-q"], directory / "log", directory)
    return used["peak"], used["wall"], used["code"]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory", default="300M")
    parser.add_argument("--most", type=int, default=3000, help="leave out nights of more frames")
    parser.add_argument("--packed", action="store_true")
    parser.add_argument("--large", action="store_true")
    options = parser.parse_args()
    allowed = int(options.memory.removesuffix("M")) * 1_000_000 + BESIDE
    print("  frames     side  pixels MB    peak MB  allowed MB  seconds")
    good = True
    for frames, side, stars in LARGE if options.large else SETS:
        if frames > options.most:
            continue
        with tempfile.TemporaryDirectory() as name:
            size = simulate(Path(name), frames, side, stars, options.packed)
            peak, seconds, code = run(Path(name), options.memory)
        met = code == 0 and peak <= allowed
        good = good and met
        figures = f"{size / 1e6:10.0f} {peak / 1e6:10.0f} {allowed / 1e6:11.0f} {seconds:8.1f}"
        print(f"{frames:8d} {side:8d} {figures}  {'met' if met else f'MISSED (exit {code})'}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
