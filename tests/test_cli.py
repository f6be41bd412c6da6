"""The commands as a user types them, in processes of their own."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

import fastack
from fastack.simulate import NightOptions, simulate_night

ROOT = Path(__file__).resolve().parents[1]


def run(*words: object, cwd: Path, script: str = "fastack", **environment: str) -> subprocess.CompletedProcess[str]:
    if script == "fastack":
        command = [sys.executable, "-m", "fastack", *map(str, words)]
    else:
        command = [sys.executable, str(ROOT / "scripts" / script), *map(str, words)]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("night")
    options = NightOptions(
        n_frames=5, shape=(256, 320), n_stars=100, flux=(3000.0, 4e5), fwhm=(2.5, 2.6, 6.0, 2.5, 2.7), fwhm_spread=0.0
    )
    simulate_night(options).write(directory)
    return directory


def test_version_and_help(tmp_path: Path) -> None:
    done = run("--version", cwd=tmp_path)
    assert done.stdout.strip() == f"fastack, version {fastack.__version__}"
    done = run("stack", "--help", cwd=tmp_path)
    assert "--fwhm-limit" in done.stdout
    assert done.returncode == 0


def test_stackx2_averages_what_is_below_the_limit(night: Path) -> None:
    for name in ("ad0001.fits", "amosaic_gaia.fits", "mosaic.fits"):
        (night / name).write_bytes((night / "d0001.fits").read_bytes())
    done = run("5.0", cwd=night, script="stackX2.py")
    assert done.returncode == 0, done.stderr
    assert "4 of 5 frames used" in done.stdout
    assert "d0003.fits: FWHM" in done.stdout
    with fits.open(night / "mosaic.fits") as file:
        assert file[0].header["NCOMBINE"] == 4
        assert set(file["FRAMES"].data["name"]) == {f"d{k:04d}.fits" for k in range(1, 6)}
        sky = np.nanmedian(file[0].data)
    frames = [np.median(fits.getdata(night / f"d{k:04d}.fits")) for k in (1, 2, 4, 5)]
    assert min(frames) - 3 < sky < max(frames) + 3  # the average, not the sum
    (night / "DONT_PROCESS").write_text("2  # clouds\n")
    try:
        done = run("5.0", cwd=night, script="stackX2.py")
    finally:
        (night / "DONT_PROCESS").unlink()
    assert "DONT_PROCESS leaves out d0002.fits" in done.stderr
    assert "3 of 4 frames used" in done.stdout


def test_stackx2_says_why_nothing_is_left(night: Path, tmp_path: Path) -> None:
    done = run("1.0", "-o", tmp_path / "m.fits", cwd=night, script="stackX2.py")
    assert done.returncode == 1
    assert "FWHM of the frames" in done.stderr
    assert "Traceback" not in done.stderr
    done = run("5.0", cwd=tmp_path, script="stackX2.py")
    assert done.returncode == 1
    assert "d*.fits" in done.stderr
    done = run("big", cwd=night, script="stackX2.py")
    assert done.returncode == 1
    assert "no limit" in done.stderr


def test_stack_writes_what_was_asked_for(night: Path, tmp_path: Path) -> None:
    target, table, picture = tmp_path / "s.fits", tmp_path / "s.ecsv", tmp_path / "s.png"
    command = ("stack", night, "-o", target, "--table", table, "--preview", picture, "--maps", "-v")
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with fits.open(target, checksum=True) as file:
        assert [h.name for h in file][1:] == ["UNCERT", "NCOMB", "WEIGHT", "FLAGS", "REJLOW", "REJHIGH", "FRAMES"]
        file.verify("exception")
    assert len(Table.read(table)) == 5
    assert picture.read_bytes().startswith(b"\x89PNG")
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 1
    assert "--overwrite" in done.stderr


def test_transforms_of_a_stack_can_be_used_again(night: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.fits", tmp_path / "b.fits"
    assert run("stack", night, "-q", "-o", first, cwd=tmp_path).returncode == 0
    done = run("stack", night, "-q", "-o", second, "--register", first, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(fits.getdata(first), fits.getdata(second))


def test_dry_run_writes_nothing_and_shows_the_choice(night: Path, tmp_path: Path) -> None:
    done = run("stack", night, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "FWHM limit" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()]
    limits = {row[0]: float(row[2]) for row in rows if len(row) == 4 and row[0] in ("equal", "variance", "depth")}
    assert limits.keys() == {"equal", "variance", "depth"}
    assert limits["depth"] < limits["equal"]  # one of the frames has twice the seeing of the others
    assert f"5 sigma point source {limits['equal']:.4g} adu with weights equal" in done.stdout
    assert not list(tmp_path.iterdir())


def test_measure_prints_and_writes_a_table(night: Path, tmp_path: Path) -> None:
    for name in ("m.ecsv", "m.fits", "m.csv"):
        done = run("measure", night, "-o", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        table = Table.read(tmp_path / name)
        assert len(table) == 5
        assert 5.5 < float(table["fwhm"][2]) < 6.8
    assert "d0003.fits" in done.stdout


def test_wrong_usage_has_its_own_exit_code(tmp_path: Path) -> None:
    assert run("stack", "--kernel", "magic", cwd=tmp_path).returncode == 2
    assert run("nonsense", cwd=tmp_path).returncode == 2
    done = run("stack", "nothing*.fits", cwd=tmp_path)
    assert done.returncode == 1
    assert "nothing*.fits" in done.stderr


def test_dfstack_takes_frames_of_a_night(night: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive" / "east-14" / "2019" / "19_01_30"
    archive.mkdir(parents=True)
    for k in (1, 2, 4, 5):
        (archive / f"d{139 + k:04d}.fits").write_bytes((night / f"d{k:04d}.fits").read_bytes())
    work = tmp_path / "work"
    work.mkdir()
    (work / "DONT_PROCESS").write_text("d0144.fits")
    before = {p: p.stat().st_mtime_ns for p in archive.iterdir()}
    done = run(
        "east-14", "19_01_30", 140, 150, cwd=work, script="dfstack.py", FASTACK_ARCHIVE=str(tmp_path / "archive")
    )
    assert done.returncode in (0, 3), done.stderr
    assert "d0142, d0145 to d0150" in done.stderr
    assert "DONT_PROCESS leaves out d0144.fits" in done.stderr
    with fits.open(work / "mosaic.fits") as file:
        assert file[0].header["NCOMBINE"] == 3
        assert "19_01_30" in str(file[0].header["HISTORY"])
    assert {p: p.stat().st_mtime_ns for p in archive.iterdir()} == before


def test_full_disk_keeps_the_old_output(night: Path, tmp_path: Path) -> None:
    """The limit of a file's size stands for the end of the disk."""
    target = tmp_path / "mosaic.fits"
    target.write_bytes(b"precious")
    command = [sys.executable, "-m", "fastack", "stack", str(night / "d000?.fits"), "-o", str(target), "--overwrite"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    )
    assert done.returncode == 1, done.stderr
    assert "mosaic.fits" in done.stderr
    assert "Traceback" not in done.stderr
    assert target.read_bytes() == b"precious"
    assert [p.name for p in tmp_path.iterdir()] == ["mosaic.fits"]


def test_reference_that_is_not_there_is_named(night: Path, tmp_path: Path) -> None:
    done = run("stack", night / "d000?.fits", "--reference", "d0099", cwd=tmp_path)
    assert done.returncode == 1
    assert "d0099" in done.stderr
    done = run("stack", night / "d000?.fits", "--reference", "d0002", "--dry-run", cwd=tmp_path)
    assert "reference d0002.fits" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    options = NightOptions(n_frames=12, shape=(1024, 1024), n_stars=300)
    simulate_night(options, threads=2).write(tmp_path)
    target = tmp_path / "mosaic.fits"
    target.write_bytes(b"precious")
    before = sorted(p.name for p in tmp_path.iterdir())
    for moment in ("measuring", "writing"):
        process = subprocess.Popen(
            [sys.executable, "-m", "fastack", "stack", "--threads", "1", "--overwrite", "--kernel", "lanczos4"],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if moment == "measuring" and Path(f"/proc/{process.pid}/fd").is_dir():
                opened = [os.path.basename(p) for p in links(process.pid)]
                if any(name.startswith("d00") for name in opened):
                    break
            elif moment == "measuring" and sys.platform != "linux":
                time.sleep(1.0)
                break
            elif moment == "writing" and len(list(tmp_path.iterdir())) > len(before):
                break
            time.sleep(0.002)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        if process.returncode == 0:  # it was faster than we: then the whole stack has to be there
            fits.open(target, checksum=True).close()
            target.write_bytes(b"precious")
        else:
            assert process.returncode == 128 + number, errors
            assert "interrupted; nothing was written" in errors
            assert target.read_bytes() == b"precious"
        assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_demo_leaves_what_the_readme_promises(tmp_path: Path) -> None:
    done = run("demo", "--frames", "4", "--size", "384", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = {p.name for p in (tmp_path / "fastack-demo").iterdir()}
    assert made >= {"mosaic.fits", "amosaic.fits", "mosaic.png", "comparison.png", "frames.ecsv", "catalogue.ecsv"}


def links(pid: int) -> list[str]:
    """Files that a process has open."""
    found = []
    with contextlib.suppress(OSError):
        for entry in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"/proc/{pid}/fd/{entry}"))
    return found


def test_a_warning_is_one_line_without_source() -> None:
    code = (
        "import click, warnings; from fastack import cli, errors\n"
        "@click.command()\n"
        "def doubtful(): warnings.warn('a store stands in', errors.FastackWarning)\n"
        "cli._main(doubtful, 'fastack')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr == "fastack: a store stands in\n"
    assert done.returncode == 0
