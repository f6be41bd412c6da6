"""Files on disk get their place on the sky."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

import fastack
from fastack.errors import CatalogueError, OutputError, SolveError
from fastack.platesolve import mean_epoch, solve_file
from fastack.simulate import NightOptions, simulate_night
from fastack.store import Store
from fastack.tables import read_file


@pytest.fixture(scope="module")
def stacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sky")
    options = NightOptions(
        n_frames=4,
        shape=(400, 500),
        n_stars=150,
        flux=(3000.0, 3e5),
        separation=8.0,
        pixel_scale=0.7,
        pointing_error=60.0,
    )
    night = simulate_night(options)
    night.write(directory)
    fastack.stack(str(directory), output_path=directory / "mosaic.fits")
    stars = night.truth.table()
    stars["mag"] = 25 - 2.5 * np.log10(stars["flux"].value * options.gain**-1)
    stars["ra", "dec", "mag"].write(directory / "stars.ecsv")
    np.save(directory / "truth.npy", night.truth.radec)
    return directory


@pytest.mark.parametrize("distortion", ["sip", "tpv"])
def test_a_stack_is_placed_on_the_sky(stacked: Path, tmp_path: Path, distortion: str) -> None:
    target = tmp_path / "amosaic.fits"
    solved = solve_file(
        stacked / "mosaic.fits", str(stacked / "stars.ecsv"), target, distortion=distortion, plots=tmp_path / "r.png"
    )
    assert solved.solution.n > 60
    with fits.open(target, checksum=True) as file, fits.open(stacked / "mosaic.fits") as before:
        file.verify("exception")
        np.testing.assert_array_equal(file[0].data, before[0].data)
        assert [h.name for h in file] == [h.name for h in before]
        head = file[0].header
        assert not [k for k in head if k.startswith(("PC1", "PC2", "CDELT", "CROTA"))]
        assert file["UNCERT"].header["CRVAL1"] == head["CRVAL1"]
        # the zero point is that of the reference frame, whose transparency is within some percent of one
        assert head["MAGZPT"] == pytest.approx(25.0, abs=0.2)
        wcs = WCS(head)
    stars = Table.read(stacked / "stars.ecsv")
    xy = wcs.all_world2pix(np.column_stack([stars["ra"], stars["dec"]]), 0)
    fitted = solved.solution.xy
    nearest = np.hypot(*(xy[None] - fitted[:, None]).transpose(2, 0, 1)).min(axis=1)
    # the error of the whole solution is that of one star over the root of their number
    assert np.median(nearest) < 0.3
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert len(Table.read(tmp_path / "r.ecsv")) == solved.solution.n


def test_another_places_catalogue_is_refused_and_nothing_written(stacked: Path, tmp_path: Path) -> None:
    stars = Table.read(stacked / "stars.ecsv")
    rng = np.random.default_rng(3)
    stars["ra"] = stars["ra"].mean() + rng.permutation(stars["ra"] - stars["ra"].mean())
    stars.write(tmp_path / "wrong.ecsv")
    with pytest.raises(SolveError):
        solve_file(stacked / "mosaic.fits", str(tmp_path / "wrong.ecsv"), tmp_path / "a.fits")
    assert not (tmp_path / "a.fits").exists()


def test_columns_with_other_names_are_mapped(stacked: Path, tmp_path: Path) -> None:
    stars = Table.read(stacked / "stars.ecsv")
    stars.rename_columns(["ra", "dec", "mag"], ["foo", "bar", "baz"])
    stars.write(tmp_path / "odd.csv")
    words = [sys.executable, "-m", "fastack", "solve", str(stacked / "mosaic.fits"), "-o", str(tmp_path / "a.fits")]

    def solve(source: str, columns: str) -> subprocess.CompletedProcess[str]:
        command = [*words, "--catalogue", source, "--columns", columns]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    odd = str(tmp_path / "odd.csv")
    wrong = solve(odd, "ra:foo")
    assert wrong.returncode == 2
    assert "ra=" in wrong.stderr
    assert "no column 'nix'" in solve(odd, "ra=foo,dec=nix").stderr
    assert "only a file's columns can be mapped" in solve("gaia", "ra=foo,dec=bar").stderr
    assert not (tmp_path / "a.fits").exists()
    good = solve(odd, "ra=foo, dec=bar,mag=baz")
    assert good.returncode == 0, good.stderr
    assert "stars of odd.csv" in good.stdout
    assert "zero point" in good.stdout


def test_refusals(stacked: Path, tmp_path: Path) -> None:
    (tmp_path / "a.fits").touch()
    with pytest.raises(OutputError, match="--overwrite"):
        solve_file(stacked / "mosaic.fits", str(stacked / "stars.ecsv"), tmp_path / "a.fits")
    with pytest.raises((CatalogueError, SolveError)):
        solve_file(stacked / "mosaic.fits", str(tmp_path / "absent.csv"), tmp_path / "b.fits")


def test_solve_field_helps_where_nothing_tells_the_place(
    stacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program of that name that writes a rough WCS, as astrometry.net's does."""
    with fits.open(stacked / "mosaic.fits") as file:
        for card in ("RA", "DEC", "PIXSCALE", "OBJECT"):
            del file[0].header[card]
        file.writeto(tmp_path / "mosaic.fits")
    store = Store(tmp_path / "store")
    store.add(read_file(stacked / "stars.ecsv"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SolveError, match=r"--centre.*solve-field"):
        solve_file(tmp_path / "mosaic.fits", str(store.path), tmp_path / "a.fits")
    rough = fits.Header([("CTYPE1", "RA---TAN"), ("CTYPE2", "DEC--TAN"), ("CRVAL1", 299.6), ("CRVAL2", 35.19)])
    rough.extend([("CRPIX1", 250.0), ("CRPIX2", 200.0), ("CD1_1", -0.0002), ("CD2_2", 0.0002)])
    fits.PrimaryHDU(header=rough).writeto(tmp_path / "rough.fits")
    program = tmp_path / "solve-field"
    copy = f"import shutil, sys; shutil.copy({str(tmp_path / 'rough.fits')!r}, sys.argv[4] + '/mosaic.wcs')"
    program.write_text(f"#!{sys.executable}\n{copy}\n")
    program.chmod(0o755)
    solved = solve_file(tmp_path / "mosaic.fits", str(store.path), tmp_path / "a.fits")
    assert solved.solution.n > 60


def test_epoch_of_an_image() -> None:
    assert mean_epoch(fits.Header([("DATE-AVG", "2019-01-30T22:00:00")])) == pytest.approx(2019.0807, abs=1e-3)
    assert mean_epoch(fits.Header([("MJD-OBS", 58513.9)])) == pytest.approx(2019.0807, abs=1e-3)
    assert mean_epoch(fits.Header()) is None


@pytest.mark.real
def test_hatp32_from_its_header_as_it_is(data_root: Path, tmp_path: Path) -> None:
    paths = sorted((data_root / "hatp32").glob("*.FITS"))
    store = str(data_root / "catalogues" / "tycho2_hatp32.csv")
    run = {"reference": "first", "framing": "reference"}
    fastack.stack(paths, output_path=tmp_path / "h.fits", **run)
    solved = solve_file(tmp_path / "h.fits", store, tmp_path / "ah.fits").solution
    fastack.stack(paths, output_path=tmp_path / "plain.fits", reject="none", **run)
    plain = solve_file(tmp_path / "plain.fits", store, tmp_path / "aplain.fits").solution
    assert solved.n >= 43
    assert solved.parity == -1
    assert solved.scale == pytest.approx(5.164, abs=0.01)
    # what the frames allow: some are trailed, and the rejection takes nothing of it from the stars' places
    error = 1 / np.sqrt(2 * solved.n)
    assert solved.rms_ra < plain.rms_ra * (1 + error)
    assert solved.rms_dec < plain.rms_dec * (1 + error)
    assert max(solved.rms_ra, solved.rms_dec) < 0.5 * solved.scale
    x, y = WCS(fits.getheader(tmp_path / "ah.fits")).all_world2pix([[31.0427, 46.6878]], 0)[0]
    assert np.hypot(x - 423, y - 286) < 1


@pytest.mark.real
@pytest.mark.filterwarnings("ignore")  # of the old cards
def test_m27_with_stars_that_have_bloomed(data_root: Path, tmp_path: Path) -> None:
    """21 stars of Tycho-2, of which the brightest stands on the last row."""
    fastack.stack(sorted((data_root / "m27_osc").glob("*.fits")), output_path=tmp_path / "m.fits")
    solved = solve_file(tmp_path / "m.fits", str(data_root / "catalogues" / "tycho2_m27.csv"), tmp_path / "am.fits")
    assert solved.solution.n >= 20
    assert solved.solution.scale == pytest.approx(1.4817, rel=1e-3)
    assert solved.solution.map_error < 0.5 * solved.solution.scale
