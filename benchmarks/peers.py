"""Whole stacks by other programs, each run as its own process on the same directory of frames.

    python benchmarks/peers.py astroalign FRAMES_DIR OUT.fits

runs one that is a Python library; Siril, SWarp and fastack are started as the commands that their users type.
All reject outliers, average, scale the frames to each other, and write float32. What a peer cannot find out
by itself (SWarp and ccdproc do not match stars) it is given from the truth: a perfect WCS and flux scale, in
FRAMES_DIR/heads.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Peer:
    """How a program is started, and where it leaves its result."""

    missing: Callable[[], str | None]  # why it cannot run here
    command: Callable[[Path, Path, Path], list[str]]  # frames, output, scratch -> argv
    result: Callable[[Path, Path], Path]  # output, scratch -> file
    says: str


def frame_files(frames: Path) -> list[Path]:
    return sorted(frames.glob("d*.fits"))


def threads() -> int:
    return len(os.sched_getaffinity(0))


# Commands ------------------------------------------------------------------------------------------------


def _fastack(frames: Path, out: Path, scratch: Path) -> list[str]:
    files = [str(path) for path in frame_files(frames)]
    return [sys.executable, "-m", "fastack", "stack", *files, "-o", str(out), "--overwrite", "-q"]


def _siril(frames: Path, out: Path, scratch: Path) -> list[str]:
    script = scratch / "stack.ssf"
    script.write_text(
        "\n".join(
            [
                "requires 1.0.0",
                f"setcpu {threads()}",
                "set32bits",
                "setext fits",
                f"cd {frames}",
                f"link light -out={scratch}",
                f"cd {scratch}",
                "register light",
                "stack r_light rej 3 3 -norm=addscale -out=result",
                "close",
            ]
        )
        + "\n"
    )
    return ["siril-cli", "-d", str(scratch), "-s", str(script)]


def _swarp(frames: Path, out: Path, scratch: Path) -> list[str]:
    for path in frame_files(frames):
        (scratch / path.name).symlink_to(path)
        shutil.copy(frames / "heads" / f"{path.stem}.head", scratch)
    shutil.copy(frames / "heads" / "grid.head", out.with_suffix(".head"))
    settings = {
        "IMAGEOUT_NAME": out,
        "WEIGHTOUT_NAME": scratch / "weight.fits",
        "RESAMPLE_DIR": scratch,
        "COMBINE_TYPE": "CLIPPED",
        "RESAMPLING_TYPE": "LANCZOS3",
        "WEIGHT_TYPE": "NONE",
        "FSCALE_KEYWORD": "FLXSCALE",
        "FSCALASTRO_TYPE": "NONE",
        "SUBTRACT_BACK": "Y",
        "BACK_SIZE": 256,
        "NTHREADS": threads(),
        "MEM_MAX": 8000,
        "COMBINE_BUFSIZE": 4000,
        "WRITE_XML": "N",
        "VERBOSE_TYPE": "QUIET",
    }
    files = [str(scratch / path.name) for path in frame_files(frames)]
    return ["SWarp", *files, "-c", "/dev/null", *(f"{x}" for k, v in settings.items() for x in (f"-{k}", v))]


def _library(name: str) -> Callable[[Path, Path, Path], list[str]]:
    return lambda frames, out, scratch: [sys.executable, __file__, name, str(frames), str(out)]


def _program(name: str) -> Callable[[], str | None]:
    return lambda: None if shutil.which(name) else f"{name} is not installed"


def _modules(*names: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        absent = [name for name in names if importlib.util.find_spec(name) is None]
        return f"{', '.join(absent)} not installed" if absent else None

    return missing


def _as_asked(out: Path, scratch: Path) -> Path:
    return out


PEERS = {
    "fastack": Peer(_modules("fastack.__main__"), _fastack, _as_asked, "defaults"),
    "astroalign": Peer(
        _modules("astroalign"),
        _library("astroalign"),
        _as_asked,
        "register, median/MAD scaling, astropy sigma_clip (3, 3 rounds), mean",
    ),
    "siril": Peer(
        _program("siril-cli"),
        _siril,
        lambda out, scratch: scratch / "result.fits",
        "register, stack rej 3 3 -norm=addscale",
    ),
    "swarp": Peer(_program("SWarp"), _swarp, _as_asked, "CLIPPED, Lanczos-3; true WCS and flux scale given"),
    "ccdproc": Peer(
        _modules("ccdproc", "reproject"),
        _library("ccdproc"),
        _as_asked,
        "wcs_project, Combiner.sigma_clipping (3), average_combine; true WCS and flux scale given",
    ),
}


# Libraries -----------------------------------------------------------------------------------------------


def stack_with_astroalign(frames: Path, out: Path) -> None:
    """Register each frame on the first, scale it by median and MAD, clip and average in bands of rows."""
    import astroalign
    import numpy as np
    from astropy.io import fits
    from astropy.stats import sigma_clip

    files = frame_files(frames)
    reference = fits.getdata(files[0]).astype(np.float32)
    planes, levels = [], []
    for path in files:
        image = fits.getdata(path).astype(np.float32)
        try:
            image, outside = astroalign.register(image, reference)
        except (astroalign.MaxIterError, ValueError, TypeError) as error:
            print(f"{path.name}: {error}", file=sys.stderr)
            continue
        image = image.astype(np.float32)
        image[outside] = np.nan
        sample = image[::4, ::4]
        level = np.nanmedian(sample)
        levels.append((level, np.nanmedian(np.abs(sample - level))))
        planes.append(image)
    cube = np.empty((len(planes), *reference.shape), np.float32)
    for i, (level, spread) in enumerate(levels):
        scale = levels[0][1] / spread
        cube[i] = (planes[i] - level) * scale + levels[0][0]
        planes[i] = None
    result = np.empty(reference.shape, np.float32)
    for first in range(0, len(result), 128):
        band = np.s_[first : first + 128]
        kept = sigma_clip(cube[:, band], sigma=3, maxiters=3, axis=0, masked=False, copy=True)
        result[band] = np.nanmean(kept, axis=0)
    fits.writeto(out, result, overwrite=True)


def stack_with_ccdproc(frames: Path, out: Path) -> None:
    """Project each frame on the grid by its WCS, then clip and average in bands of rows."""
    import ccdproc
    import numpy as np
    from astropy.io import fits
    from astropy.nddata import CCDData
    from astropy.wcs import WCS

    grid = fits.Header.fromtextfile(frames / "heads" / "grid.head")
    shape = grid["NAXIS2"], grid["NAXIS1"]
    planes = []
    for path in frame_files(frames):
        head = fits.Header.fromtextfile(frames / "heads" / f"{path.stem}.head")
        image = fits.getdata(path).astype(np.float32)
        image = (image - np.median(image[::4, ::4])) * np.float32(head["FLXSCALE"])
        projected = ccdproc.wcs_project(CCDData(image, unit="adu", wcs=WCS(head)), WCS(grid), target_shape=shape)
        planes.append(np.where(np.isfinite(projected.data), projected.data, np.nan).astype(np.float32))
    result = np.empty(shape, np.float32)
    for first in range(0, shape[0], 128):
        bands = [plane[first : first + 128] for plane in planes]
        combiner = ccdproc.Combiner([CCDData(b, unit="adu", mask=np.isnan(b)) for b in bands], dtype=np.float32)
        combiner.sigma_clipping(low_thresh=3, high_thresh=3, func=np.ma.median)
        result[first : first + 128] = combiner.average_combine().data
    fits.writeto(out, result, overwrite=True)


LIBRARIES = {"astroalign": stack_with_astroalign, "ccdproc": stack_with_ccdproc}

if __name__ == "__main__":
    LIBRARIES[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
