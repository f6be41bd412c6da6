"""Shared fixtures: the real frames, and every instruction set of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastack import _pixels


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
