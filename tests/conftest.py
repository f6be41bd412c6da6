"""Shared fixtures: the real frames, and every instruction set of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from servers import CYGNUS, GEMINI, Servers, survey_tables

from fastack import _pixels
from fastack.options import CatalogueOptions


def _data_root() -> Path:
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("FASTACK_TEST_DATA", default))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the real frames; the test is skipped where it is absent."""
    root = _data_root()
    if not root.is_dir():
        pytest.skip(f"real frames not found: {root} (set FASTACK_TEST_DATA)")
    return root


@pytest.fixture(params=_pixels.isa_levels())
def isa(request: pytest.FixtureRequest) -> str:
    """Run the test once for each instruction set that this machine has."""
    _pixels._choose_isa(request.param)
    yield request.param
    _pixels._choose_isa(os.environ.get("FASTACK_ISA") or None)


@pytest.fixture
def servers() -> Iterator[Servers]:
    """VizieR, the Gaia archive and Sesame on loopback, with made-up stars around two places."""
    rng = np.random.default_rng(5)
    n = 16_000
    offset = rng.uniform(-0.6, 0.6, (2, n))
    centre = np.where(np.arange(n) % 2 == 0, np.array(CYGNUS)[:, None], np.array(GEMINI)[:, None])
    dec = centre[1] + offset[1]
    services = Servers()
    services.tables |= survey_tables(
        centre[0] + offset[0] / np.cos(np.radians(dec)), dec, rng.uniform(9.0, 17.0, n).round(3)
    )
    yield services
    services.close()


@pytest.fixture
def catalogue_options(servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogueOptions:
    """Ask the servers on loopback; only who meets the mood "slow" need be `impatient`."""
    monkeypatch.delenv("FASTACK_CATALOGUES", raising=False)
    return CatalogueOptions(
        vizier_server=servers.url,
        gaia_server=f"{servers.url}/tap-server/tap",
        sesame_server=f"{servers.url}/sesame/",
        cache_path=str(tmp_path / "cache"),
        timeout=15.0,
        job_timeout=30.0,
        retries=1,
        backoff=0.01,
    )
