"""The rejections of Siril and SWarp on the scenes of truth_combine.py, beside fastack's default.

    python benchmarks/peers_rejection.py [--numbers 5 10 30]

The same registered frames, with and without artefacts, are written as FITS files and averaged by `siril-cli` (stack ...
rej TYPE, no normalisation, its own default limits) and by SWarp (COMBINE_TYPE CLIPPED with its default limits, no
resampling, no background). All columns are those of truth_combine.py. Programs that are not installed are left out.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from astropy.io import fits
from truth_combine import GAIN, NIGHTS, SKY, Scene, figures, scene, show

from fastack.combine import combine

SIRIL = {
    "sigma": "s 3 3", "median sigma": "m 3 3", "MAD": "a 3 3", "winsorized": "w 3 3", "linear fit": "l 5 5",
    "percentile": "p 0.2 0.1", "ESD": "g 0.3 0.05",
}  # fmt: skip
FULL = 65535.0  # Siril takes floats for parts of this


def siril(cube: np.ndarray) -> dict[str, np.ndarray]:
    """Averages of a cube by each rejection of Siril."""
    with tempfile.TemporaryDirectory() as directory:
        for k, image in enumerate(cube):
            fits.writeto(Path(directory) / f"light_{k + 1:05d}.fits", (image / FULL).astype(np.float32))
        lines = ["requires 1.0.0", "set32bits", "setext fits"]
        lines += [f"stack light rej {rule} -nonorm -out=out{k}" for k, rule in enumerate(SIRIL.values())]
        (Path(directory) / "run.ssf").write_text("\n".join([*lines, "close", ""]))
        words = ["siril-cli", "-d", directory, "-s", f"{directory}/run.ssf"]
        subprocess.run(words, check=True, capture_output=True)
        return {
            f"Siril {name}": fits.getdata(Path(directory) / f"out{k}.fits").astype(float) * FULL
            for k, name in enumerate(SIRIL)
        }


def swarp(cube: np.ndarray) -> dict[str, np.ndarray]:
    """Clipped average of a cube by SWarp."""
    ny, nx = cube[0].shape
    header = fits.Header({"GAIN": GAIN})  # without it, SWarp clips nothing
    for keyword, value in {
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": 0.0, "CRPIX1": (nx + 1) / 2,
        "CRPIX2": (ny + 1) / 2, "CD1_1": -2e-4, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 2e-4,
    }.items():  # fmt: skip
        header[keyword] = value
    with tempfile.TemporaryDirectory() as directory:
        names = [f"f{k:03d}.fits" for k in range(len(cube))]
        for name, image in zip(names, cube, strict=True):
            fits.writeto(Path(directory) / name, image.astype(np.float32), header)
        words = (
            "-c /dev/null -COMBINE_TYPE CLIPPED -RESAMPLE N -SUBTRACT_BACK N -WEIGHT_TYPE NONE -FSCALASTRO_TYPE NONE"
        )
        words += (
            f" -CENTER_TYPE MANUAL -CENTER 10.0,0.0 -IMAGE_SIZE {nx},{ny} -PIXELSCALE_TYPE MANUAL -PIXEL_SCALE 0.72"
        )
        words += " -IMAGEOUT_NAME out.fits -WEIGHTOUT_NAME w.fits -WRITE_XML N -VERBOSE_TYPE QUIET"
        subprocess.run(["SWarp", *names, *words.split()], cwd=directory, check=True, capture_output=True)
        return {"SWarp clipped": fits.getdata(Path(directory) / "out.fits").astype(float)}


def default(s: Scene, cube: np.ndarray) -> dict[str, np.ndarray]:
    """The default, on plain arrays and with the stars that a run knows."""
    rows = {"fastack": None, "fastack, stars": s.known}
    return {name: combine(cube, noise=s.model, stars=stars, pedestal=SKY).data for name, stars in rows.items()}


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--numbers", type=int, nargs="+", default=[5, 10, 30])
    args = parser.parse_args()
    programs = [f for name, f in (("siril-cli", siril), ("SWarp", swarp)) if shutil.which(name)]
    columns = ("bright %", "faint", "noise %", "sky", "core", "false")
    print(f"{'night':22} {'N':>3} {'rejection':19}" + "".join(f"{c:>9}" for c in columns))
    results: dict[tuple[str, int], list[dict[str, float]]] = {}
    for k, night in enumerate(NIGHTS):
        for n in args.numbers:
            s = scene(night, n, 1000 * k + n, (300, 300))
            kept, dirty = (default(s, cube) for cube in (s.clean, s.dirty))
            for program in programs:
                kept, dirty = kept | program(s.clean), dirty | program(s.dirty)
            for name in kept:
                bright, faint, noise, *counts = figures(s, kept[name], dirty[name])
                row = dict(zip(columns, (100 * bright, faint, 100 * noise, *counts), strict=True))
                results.setdefault((name, n), []).append(row)
                print(f"{night.name:22} {n:3} {name:19}" + show(row.values()), flush=True)
    print("\nworst of bright, faint and noise over the nights; sums of the others")
    for (name, n), rows in sorted(results.items(), key=lambda item: item[0][1]):
        values = [(max if c in columns[:3] else sum)(r[c] for r in rows) for c in columns]
        print(f"{n:3} {name:19}" + show(values))
    return 0


if __name__ == "__main__":
    main()
