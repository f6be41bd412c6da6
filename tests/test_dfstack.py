"""The observatory's command from end to end: archive, stack, both catalogues, coordinates.

The sky is simulated, its stars stand in the catalogues of servers on loopback, and the WCS that is found is held
against the one that the simulator used, which no command ever saw.
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from servers import Servers, survey_tables

from fastack.simulate import NightOptions, simulate_night

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = NightOptions(
    n_frames=5,
    shape=(420, 500),
    n_stars=110,
    flux=(2000.0, 3e5),
    separation=10.0,
    pixel_scale=0.9,
    fwhm=2.6,
    pointing_error=90.0,
)
DATE = 2019.082  # of the night, Julian year
NUMBERS = (140, 141, 143, 144, 145)  # 142 and 146 to 150 do not exist
PRODUCTS = ("mosaic.fits", "amosaic_ucac4.fits", "amosaic_gaia.fits")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ROOT/east-14/2019/19_01_30 with frames in all three forms, read-only."""
    root = tmp_path_factory.mktemp("archive")
    directory = root / "east-14" / "2019" / "19_01_30"
    for number, path in zip(NUMBERS, simulate_night(OPTIONS).write(root / "raw"), strict=True):
        directory.mkdir(parents=True, exist_ok=True)
        target = directory / f"d{number:04d}.fits"
        if number == 141:
            target.with_suffix(".fits.gz").write_bytes(gzip.compress(path.read_bytes()))
        elif number == 143:
            data, header = fits.getdata(path, header=True)
            fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(data, header, compression_type="RICE_1")]).writeto(
                target.with_suffix(".fits.fz")
            )
        else:
            target.write_bytes(path.read_bytes())
    shutil.rmtree(root / "raw")
    return root


@pytest.fixture
def sky(servers: Servers) -> Servers:
    """The simulated stars and their surroundings, all of them moving, as both catalogues would list them."""
    truth = simulate_night(OPTIONS).truth
    rng = np.random.default_rng(8)
    around = rng.uniform(-0.35, 0.35, (2, 1500))
    near = np.abs(around).max(axis=0) < 0.08
    ra = OPTIONS.centre[0] + around[0] / np.cos(np.radians(OPTIONS.centre[1]))
    dec = OPTIONS.centre[1] + around[1]
    places = np.r_[truth.radec, np.column_stack([ra, dec])[~near]]
    mag = np.r_[25 - 2.5 * np.log10(truth.flux / OPTIONS.gain), rng.uniform(11, 16, (~near).sum())]
    servers.tables |= survey_tables(*places.T, mag.round(3), epoch=DATE, pm=(20.0, -30.0))
    return servers


def dfstack(
    *words: object, cwd: Path, archive: Path, script: Path = ROOT / "scripts" / "dfstack.py", **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), "east-14", "19_01_30", "140", "150", *map(str, words)]
    there = {"FASTACK_ARCHIVE": str(archive), "FASTACK_CACHE": str(cwd / "cache"), "FASTACK_CATALOGUES": ""}
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=120, env=os.environ | there | environment
    )


def asking(sky: Servers, *, vizier: str | None = None, gaia: str | None = None) -> list[str]:
    """Flags that send the requests to loopback, impatiently."""
    gaia = gaia or f"{sky.url}/tap-server/tap"
    return [
        *("--vizier-server", vizier or sky.url, "--gaia-server", gaia, "--sesame-server", f"{sky.url}/sesame/"),
        *("--timeout", "3", "--retries", "0"),
    ]


def error_of(path: Path) -> float:
    """Largest distance between a file's coordinates and the simulator's over the whole image, arcsec."""
    header = fits.getheader(path)
    night = simulate_night(replace(OPTIONS, wcs="exact"))
    # archive numbers are not the night's
    name = header["FASTREF"].split(".")[0]
    truth = WCS(night.header(NUMBERS.index(int(name[1:]))))
    ny, nx = header["NAXIS2"], header["NAXIS1"]
    x, y = (v.ravel() for v in np.meshgrid(np.linspace(0, nx - 1, 9), np.linspace(0, ny - 1, 9)))
    found = SkyCoord(*WCS(header).all_pix2world(x, y, 0), unit="deg")
    grid = fits.getheader(path.with_name("mosaic.fits"))
    true = SkyCoord(*truth.all_pix2world(x - grid["LTV1"], y - grid["LTV2"], 0), unit="deg")
    return float(found.separation(true).arcsec.max())


def test_a_night_becomes_three_files(archive: Path, sky: Servers, tmp_path: Path) -> None:
    (tmp_path / "DONT_PROCESS").write_text("145  # clouds\n")
    copy = tmp_path / "bin" / "dfstack.py"  # students copy the script to wherever they want it
    copy.parent.mkdir()
    shutil.copy(ROOT / "scripts" / "dfstack.py", copy)
    before = {p: p.stat().st_mtime_ns for p in archive.rglob("*")}
    done = dfstack(*asking(sky), cwd=tmp_path, archive=archive, script=copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "d0142, d0146 to d0150" in done.stderr
    assert "DONT_PROCESS leaves out d0145.fits" in done.stderr
    last = done.stdout.strip().splitlines()[-3:]
    assert [line.split(":")[0] for line in last] == list(PRODUCTS)
    assert fits.getheader(tmp_path / "mosaic.fits")["NCOMBINE"] == 4
    assert {r["service"] for r in sky.asked} == {"vizier", "gaia"}
    for name, catalogue in zip(PRODUCTS[1:], ("UCAC4", "Gaia DR3"), strict=True):
        with fits.open(tmp_path / name, checksum=True) as file:
            file.verify("exception")
            assert file[0].header["ASTRCAT"] == catalogue
            assert file[0].header["ASTREPOC"] == pytest.approx(DATE, abs=2e-3)
            assert file[0].header["MAGZPT"] == pytest.approx(25.0, abs=0.2)
            np.testing.assert_array_equal(file[0].data, fits.getdata(tmp_path / "mosaic.fits"))
        # 70 stars of 0.05 px (45 mas) and 20 mas: 6 mas, three times that in a corner. Without their motions the stars
        # of UCAC4 would be off by 0.7"
        assert error_of(tmp_path / name) < 0.05
    assert {p: p.stat().st_mtime_ns for p in archive.rglob("*")} == before
    if program := shutil.which("fitsverify"):
        for name in PRODUCTS:
            checked = subprocess.run([program, "-q", str(tmp_path / name)], capture_output=True, text=True)
            assert checked.stdout.startswith("verification OK"), checked.stdout


def test_an_older_solution_is_the_first_guess(archive: Path, sky: Servers, tmp_path: Path) -> None:
    """Frames that do not say where they point; adNNNN.fits beside one of them does."""
    mine = tmp_path / "archive"
    shutil.copytree(archive, mine)
    (directory,) = mine.glob("*/*/*")
    (directory / "d0141.fits.gz").unlink()
    (directory / "d0143.fits.fz").unlink()
    for path in directory.iterdir():
        with fits.open(path, mode="update") as file:
            for card in ("RA", "DEC", "PIXSCALE", "OBJECT"):
                file[0].header.remove(card)
    work = tmp_path / "work"
    work.mkdir()
    done = dfstack(*asking(sky), cwd=work, archive=mine, PATH=str(work))  # where no solve-field is
    assert done.returncode == 3
    assert (work / "mosaic.fits").is_file()
    assert "--centre" in done.stderr.splitlines()[-1]
    frame = directory / "d0144.fits"
    with fits.open(frame) as file:
        file[0].header.update(simulate_night(replace(OPTIONS, wcs="approximate")).header(3))
        file.writeto(frame.with_name("ad0144.fits"))
    done = dfstack(*asking(sky), cwd=work, archive=mine)
    assert done.returncode == 0, done.stderr
    assert error_of(work / PRODUCTS[2]) < 0.05
    for path in work.glob("amosaic*"):
        path.unlink()
    (directory / "ad0144.fits").write_bytes(b"SIMPLE  =  broken")
    done = dfstack(*asking(sky), "--centre", "299.6,35.21", "--pixel-scale", 0.9, cwd=work, archive=mine)
    assert done.returncode == 0, done.stderr


def test_servers_that_fail(archive: Path, sky: Servers, tmp_path: Path) -> None:
    """The Gaia archive down: VizieR's copy; VizieR down: no UCAC4, and the old file of that name goes; both down."""
    refused = "http://127.0.0.1:9"
    done = dfstack(*asking(sky, gaia=f"{refused}/tap-server/tap"), cwd=tmp_path, archive=archive)
    assert done.returncode == 0, done.stderr
    assert {r["-source"] for r in sky.asked} == {"I/322A/out", "I/355/gaiadr3"}
    assert error_of(tmp_path / PRODUCTS[2]) < 0.05
    shutil.rmtree(tmp_path / "cache")

    done = dfstack(*asking(sky, vizier=refused), cwd=tmp_path, archive=archive)
    assert done.returncode == 3
    lines = done.stderr.strip().splitlines()[-3:]
    assert lines[0] == "mosaic.fits: written"
    assert lines[1].startswith("amosaic_ucac4.fits: not written: UCAC4: 127.0.0.1:9 cannot be reached (no network?)")
    assert "older file of that name was removed" in lines[1]
    assert lines[2].startswith("amosaic_gaia.fits: ")
    assert "stars of Gaia DR3" in lines[2]
    assert [(tmp_path / name).exists() for name in PRODUCTS] == [True, False, True]
    shutil.rmtree(tmp_path / "cache")

    down = asking(sky, vizier=refused, gaia=f"{refused}/tap-server/tap")
    done = dfstack(*down, "-q", cwd=tmp_path, archive=archive)
    assert done.returncode == 3
    lines = done.stderr.strip().splitlines()[-3:]
    assert all("fastack catalogue fetch" in line for line in lines[1:])
    assert "Traceback" not in done.stderr
    assert [(tmp_path / name).exists() for name in PRODUCTS] == [True, False, False]


def test_a_local_store_in_place_of_the_network(archive: Path, sky: Servers, tmp_path: Path) -> None:
    store = tmp_path / "store"
    command = [sys.executable, "-m", "fastack", "catalogue", "fetch", "--around", "299.59,35.2", "--radius", "0.3"]
    command += ["--store", str(store), "--vizier-server", sky.url, "--gaia-server", f"{sky.url}/tap-server/tap"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "ucac4" in done.stdout
    assert "gaia" in done.stdout
    sky.asked.clear()
    down = asking(sky, vizier="http://127.0.0.1:9", gaia="http://127.0.0.1:9/tap-server/tap")
    ones = np.ones(OPTIONS.shape, np.float32)
    flat = fits.Header([("IMAGETYP", "Master Flat"), ("FILTER", "V")])
    fits.PrimaryHDU(ones, flat).writeto(tmp_path / "master_flat.fits")
    more = ("--wcs", "tpv", "--plots")
    done = dfstack(*down, *more, cwd=tmp_path, archive=archive, FASTACK_CATALOGUES=str(store))
    assert done.returncode == 0, done.stderr
    assert "master_flat" in str(fits.getheader(tmp_path / "mosaic.fits")["HISTORY"])
    assert fits.getheader(tmp_path / PRODUCTS[1])["CTYPE1"] == "RA---TPV"
    assert (tmp_path / "amosaic_gaia.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "amosaic_gaia.ecsv").is_file()
    assert not sky.asked
    assert not (tmp_path / "cache").exists()
    assert error_of(tmp_path / PRODUCTS[1]) < 0.05


def test_three_stars_are_too_few_for_coordinates(sky: Servers, tmp_path: Path) -> None:
    """The stack is made, and both refusals say that there are too few."""
    directory = tmp_path / "archive" / "east-14" / "2019" / "19_01_30"
    stars = {"x": [80.0, 400.0, 200.0], "y": [60.0, 120.0, 350.0], "flux": [1e5, 6e4, 4e4]}
    night = simulate_night(replace(OPTIONS, n_frames=3, shifts=((0, 0), (0, 0), (0, 0))), catalogue=stars)
    night.write(directory, first=140)
    work = tmp_path / "work"
    work.mkdir()
    done = dfstack(*asking(sky), "--register", "none", cwd=work, archive=tmp_path / "archive")
    assert done.returncode == 3, done.stderr
    lines = done.stderr.strip().splitlines()[-2:]
    assert all("too few" in line for line in lines)
    assert [(work / name).exists() for name in PRODUCTS] == [True, False, False]


def test_no_sky_asks_nobody(archive: Path, sky: Servers, tmp_path: Path) -> None:
    done = dfstack(*asking(sky), "--no-sky", cwd=tmp_path, archive=archive)
    assert done.returncode == 0, done.stderr
    assert not sky.asked
    assert [(tmp_path / name).exists() for name in PRODUCTS] == [True, False, False]
