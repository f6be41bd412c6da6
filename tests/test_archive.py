"""Nights, numbers, and frames that must not be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastack import archive
from fastack.errors import FrameError


@pytest.fixture
def night(tmp_path: Path) -> Path:
    path = tmp_path / "east-14" / "2019" / "19_01_30"
    path.mkdir(parents=True)
    for name in ("d0140.fits", "d0141.fits.gz", "d0143.fits.fz", "d0144.fits", "d0144.fits.gz", "ad0144.fits"):
        (path / name).touch()
    for name in ("d10150.fits", "d150.fits", "0145.fits", "d0146.txt"):
        (path / name).touch()
    return path


def test_a_night_has_its_directory(tmp_path: Path, night: Path) -> None:
    assert archive.night_directory(tmp_path, "east-14", "19_01_30") == night
    with pytest.raises(FrameError, match=r"no 'west-14'; it has east-14"):
        archive.night_directory(tmp_path, "west-14", "19_01_30")
    with pytest.raises(FrameError, match="no '19_01_31'; it has 19_01_30"):
        archive.night_directory(tmp_path, "east-14", "19_01_31")
    with pytest.raises(FrameError, match="yy_mm_dd"):
        archive.night_directory(tmp_path, "east-14", "2019-01-30")
    with pytest.raises(FrameError, match="--archive-root"):
        archive.night_directory(tmp_path / "absent", "east-14", "19_01_30")


def test_numbers_are_inclusive_and_missing_ones_are_told(night: Path) -> None:
    paths, missing = archive.night_frames(night, 140, 145)
    assert [p.name for p in paths] == ["d0140.fits", "d0141.fits.gz", "d0143.fits.fz", "d0144.fits"]
    assert missing == [142, 145]
    paths, _ = archive.night_frames(night, 10150, 10150)
    assert [p.name for p in paths] == ["d10150.fits"]
    with pytest.raises(FrameError, match="must not be above"):
        archive.night_frames(night, 5, 4)


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("142", [(142, 142)]),
        ("0142 143,144", [(142, 142), (143, 143), (144, 144)]),
        ("d0142.fits\nd0150.fits.gz", [(142, 142), (150, 150)]),
        ("142-145  # clouds\n# all fine from here\n", [(142, 145)]),
        ("142 - 145; 7", [(142, 145), (7, 7)]),
        ("d0142-d0145", [(142, 145)]),
        ("", []),
    ],
)
def test_forms_of_the_skip_list(tmp_path: Path, text: str, ranges: list[tuple[int, int]]) -> None:
    (tmp_path / archive.SKIP_FILE).write_text(text)
    assert archive.read_skip_list(tmp_path) == ranges


def test_an_unreadable_entry_is_an_error_and_no_file_is_none(tmp_path: Path) -> None:
    assert archive.read_skip_list(tmp_path) == []
    (tmp_path / archive.SKIP_FILE).write_text("142 yesterday's")
    with pytest.raises(FrameError, match="yesterday"):
        archive.read_skip_list(tmp_path)


def test_frames_are_parted_by_number_not_by_text() -> None:
    paths = [Path(f"d{k:04d}.fits") for k in (14, 142, 1420)] + [Path("dusk.fits")]
    kept, skipped = archive.split_skipped(paths, [(142, 142)])
    assert [p.name for p in skipped] == ["d0142.fits"]
    assert len(kept) == 3


def test_an_older_solution_beside_a_frame(night: Path) -> None:
    assert archive.older_solution([night / "d0144.fits.gz"]) == night / "ad0144.fits"
    assert archive.older_solution([night / "d0140.fits", night / "d0144.fits"]) == night / "ad0144.fits"
    assert archive.older_solution([night / "d0140.fits", night / "dusk.fits"]) is None


def test_root_by_option_environment_and_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "config_file", lambda: tmp_path / "config.toml")
    monkeypatch.delenv("FASTACK_ARCHIVE", raising=False)
    assert archive.archive_root() == Path("/mnt/archive")
    (tmp_path / "config.toml").write_text('archive_root = "/data/nights"\n')
    assert archive.archive_root() == Path("/data/nights")
    monkeypatch.setenv("FASTACK_ARCHIVE", "/env")
    assert archive.archive_root() == Path("/env")
    assert archive.archive_root("/given") == Path("/given")
    monkeypatch.delenv("FASTACK_ARCHIVE")
    (tmp_path / "config.toml").write_text("archive_root = ")
    with pytest.raises(FrameError, match="TOML"):
        archive.archive_root()
