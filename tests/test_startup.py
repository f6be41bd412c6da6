"""What is loaded when: a stack does not wait for what it does not need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SLOW = ("astropy", "astroquery", "distributed", "erfa", "matplotlib", "rich", "scipy")


def loaded_by(code: str) -> set[str]:
    """Modules that a fresh interpreter has loaded after `code`."""
    code += "\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    path = os.pathsep.join(p for p in sys.path if p)
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def packages(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fastack.simulate import NightOptions, simulate_night

    directory = tmp_path_factory.mktemp("night")
    simulate_night(NightOptions(n_frames=3, shape=(160, 192), n_stars=60, seed=2)).write(directory)
    return directory


def test_version_loads_no_arrays() -> None:
    code = "import sys; from fastack.cli import cli\ntry: cli(['--version'])\nexcept SystemExit: pass"
    assert not packages(loaded_by(code)) & {"numpy", *SLOW}


def test_frames_are_measured_without_slow_modules(night: Path) -> None:
    code = "from fastack.pipeline import measure_frames; from fastack.options import StackOptions\n"
    code += f"records, _ = measure_frames([{str(night)!r}], StackOptions())\nassert all(r.quality for r in records)"
    assert not packages(loaded_by(code)) & set(SLOW)


def test_a_stack_takes_of_astropy_the_files_alone(night: Path, tmp_path: Path) -> None:
    code = f"from fastack import stack; stack([{str(night)!r}], output_path={str(tmp_path / 'mosaic.fits')!r})"
    modules = loaded_by(code)
    assert "astropy.io.fits" in modules
    assert not modules & {"astropy.coordinates", "astropy.table", "astropy.time", "astropy.wcs", "astropy.modeling"}
    assert not packages(modules) & {"astroquery", "distributed", "matplotlib", "rich", "scipy"}


def test_the_bar_comes_with_the_first_step(capsys: pytest.CaptureFixture[str]) -> None:
    from fastack.report import BarReporter

    reporter = BarReporter()
    reporter.start("measure", 2, 1000)
    assert "measure" not in capsys.readouterr().out
    for stage in ("measure", "combine"):
        if stage == "combine":
            reporter.start(stage, 2, 1000)
        for _ in range(2):
            reporter.advance()
        reporter.finish()
    reporter.close()
    shown = capsys.readouterr().out
    assert "measure" in shown
    assert "combine" in shown
    assert shown.count("2/2") == 2
