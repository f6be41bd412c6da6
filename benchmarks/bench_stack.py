"""Whole jobs beside peers: one simulated set, every program several times in turn, products checked first.

    python benchmarks/bench_stack.py --set M --peers fastack,astroalign,siril --runs 3 --work DIR

prints a table of wall time, processor time, peak memory and quality, and writes it to DIR/stack-M.json, which
``benchmarks/table.py`` puts into README.md and docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from peers import PEERS, frame_files, threads
from quality import check_product
from table import stack_table
from watch import watch

from fastack.simulate import Night, NightOptions, read_night, simulate_night

SETS = {"S": (30, 1024, 500), "M": (100, 2048, 2000), "L": (300, 2048, 2000)}  # frames, side, stars


def night_options(name: str, *, turned: bool = False) -> NightOptions:
    """Make a night with 2 degrees of rotation, drift, dither, changing seeing, sky and transparency."""
    n, side, stars = SETS[name]
    megapixels = side * side / 1e6
    return NightOptions(
        n_frames=n,
        shape=(side, side),
        n_stars=stars,
        flux=(500.0, 1_000_000.0),
        fwhm=3.0,
        fwhm_spread=0.1,
        drift=(25.0, -15.0),
        dither=4.0,
        rotation=2.0,
        flipped=0.25 if turned else 0.0,
        transparency_spread=0.05,
        sky_spread=0.08,
        sky_gradient=0.03,
        cosmic_rays=15 * megapixels,
        hot_pixels=round(50 * megapixels),
        trails=0.05,
        seed=20190130,
    )


def make_set(directory: Path, options: NightOptions) -> Night:
    """Write the set once; later runs find it there."""
    if (directory / "night.json").is_file():
        night = read_night(directory)
        if night.options == options:
            return night
    shutil.rmtree(directory, ignore_errors=True)
    night = simulate_night(options, threads=threads())
    paths = night.write(directory)
    heads = directory / "heads"
    heads.mkdir()
    exact = Night(replace(options, wcs="exact"))
    for i, path in enumerate(paths):
        head = exact.header(i)
        head["FLXSCALE"] = 1 / night.truth.frames[i].transparency
        head.totextfile(heads / f"{path.stem}.head", overwrite=True)
    grid = exact.header(0)
    grid["NAXIS"], grid["NAXIS1"], grid["NAXIS2"] = 2, options.shape[1], options.shape[0]
    grid.totextfile(heads / "grid.head", overwrite=True)
    return night


@dataclass(frozen=True)
class Run:
    """What one process took, its children included."""

    wall: float  # s
    cpu: float  # s, user and system
    peak: float  # MiB, of the largest process


def measure(command: list[str], log: Path) -> Run:
    """Run a command to its end.

    Raises
    ------
    RuntimeError
        If it fails; the message holds the end of its output.
    """
    used = watch(command, log, log.parent)
    if used["code"]:
        tail = log.read_text(errors="replace")[-600:]
        raise RuntimeError(f"{command[0]} ended with {used['code']}: {tail}")
    return Run(used["wall"], used["cpu"], used["peak"] / 2**20)


def read_product(path: Path) -> np.ndarray:
    """Read a product; exact zeros (no data in Siril and SWarp) are missing."""
    from astropy.io import fits

    image = np.asarray(fits.getdata(path), float)
    image = image[0] if image.ndim == 3 else image
    image[image == 0] = np.nan
    return image


def run_peers(frames: Path, night: Night, names: list[str], runs: int, work: Path) -> dict[str, Any]:
    """Run every peer in turn, `runs` times, and check its product once."""
    rows: dict[str, Any] = {}
    for name in names:
        reason = PEERS[name].missing()
        rows[name] = {"says": PEERS[name].says, "skipped": reason} if reason else {"says": PEERS[name].says}
        if reason:
            print(f"{name}: skipped, {reason}", file=sys.stderr)
    seen: dict[str, list[Run]] = {name: [] for name in names if "skipped" not in rows[name]}
    for turn in range(runs):
        for name, taken in seen.items():
            if "failed" in rows[name]:
                continue
            for path in frame_files(frames):
                path.read_bytes()  # whatever the peer before wrote, the frames are in the page cache
            with tempfile.TemporaryDirectory(dir=work) as scratch:
                out, peer = work / f"{name}.fits", PEERS[name]
                try:
                    taken.append(measure(peer.command(frames, out, Path(scratch)), work / f"{name}.log"))
                    result = peer.result(out, Path(scratch))
                    if turn == 0:
                        rows[name]["quality"] = check_product(read_product(result), night)
                except (RuntimeError, ValueError, OSError) as error:
                    rows[name]["failed"] = str(error)
                    print(f"{name}: {error}", file=sys.stderr)
                    continue
            print(f"{name}: run {turn + 1}, {taken[-1].wall:.2f} s", file=sys.stderr)
    pixels = night.options.n_frames * night.options.shape[0] * night.options.shape[1]
    for name, taken in seen.items():
        if taken and "failed" not in rows[name]:
            wall = statistics.median(run.wall for run in taken)
            rows[name] |= {
                "wall": wall,
                "wall_range": [min(run.wall for run in taken), max(run.wall for run in taken)],
                "cpu": statistics.median(run.cpu for run in taken),
                "peak": max(run.peak for run in taken),
                "ns": wall / pixels * 1e9,
                "runs": len(taken),
            }
    return rows


def machine() -> dict[str, Any]:
    """Name what the numbers are measured on."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "cpu": model,
        "threads": threads(),
        "python": platform.python_version(),
        "system": platform.system(),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, default="S")
    parser.add_argument("--turned", action="store_true", help="a quarter of the frames is turned by 180 degrees")
    parser.add_argument("--peers", default=",".join(PEERS), help="comma-separated: %(default)s")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path, help="kept between runs; default: a temporary directory")
    parser.add_argument("--json", type=Path, help="default: stack-SET.json in the working directory")
    options = parser.parse_args(arguments)
    names = [name for name in options.peers.split(",") if name]
    unknown = set(names) - set(PEERS)
    if unknown:
        parser.error(f"unknown peers {', '.join(sorted(unknown))}; known: {', '.join(PEERS)}")
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        label = options.set + ("-turned" if options.turned else "")
        night = make_set(work / f"set-{label}", night_options(options.set, turned=options.turned))
        rows = run_peers(work / f"set-{label}", night, names, options.runs, work)
        command = "python benchmarks/bench_stack.py " + shlex.join(_words(options))
        result = {"set": label, "command": command, "machine": machine(), "rows": rows}
        result["frames"] = [night.options.n_frames, *night.options.shape]
        path = options.json or Path.cwd() / f"stack-{label}.json"
        path.write_text(json.dumps(result, indent=1))
    print(stack_table(result))
    return 1 if any("failed" in row for row in rows.values()) else 0


def _words(options: argparse.Namespace) -> list[str]:
    words = ["--set", options.set, "--peers", options.peers, "--runs", str(options.runs)]
    return [*words, "--turned"] if options.turned else words


if __name__ == "__main__":
    sys.exit(main())
