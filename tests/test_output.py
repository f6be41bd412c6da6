"""The FITS file: right to the bit, and all or nothing."""

from __future__ import annotations

import errno
import gc
import os

import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import CCDData

from fastack import output
from fastack.errors import OutputError

PLANES = [output.PRIMARY, output.UNCERT, output.NCOMB, output.FLAGS]


@pytest.fixture
def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    image = rng.normal(size=(70, 91)).astype(np.float32)
    image[3, 4] = np.nan
    counts = rng.integers(0, 65536, (70, 91)).astype(np.uint16)
    return {"": image, "UNCERT": np.abs(image), "NCOMB": counts, "FLAGS": (counts & 15).astype(np.uint8)}


def write(path, data, *, overwrite: bool = False, late: int = 0) -> None:
    header = fits.Header([("OBJECT", "M27", ""), ("BUNIT", "adu", "")])
    header.add_history("x" * 60)
    with output.FitsSink(path, (70, 91), PLANES, header, overwrite=overwrite) as sink:
        for name, plane in data.items():
            sink.write(name, 0, 0, plane[:32])
            sink.write(name, 32, 0, plane[32:, :48])
            sink.write(name, 32, 48, plane[32:, 48:])
            np.testing.assert_array_equal(sink.read(name, 10, 60), plane[10:60])
            room = np.empty((50, 91), np.float32)
            rows = sink.read(name, 10, 60, room)
            np.testing.assert_array_equal(rows, plane[10:60])
            assert rows.dtype == plane.dtype
            assert np.shares_memory(rows, room) == (plane.dtype == np.float32)
        for k in range(late):
            header[f"LATE{k}"] = k
        table = fits.BinTableHDU.from_columns([fits.Column("a", "E", array=np.arange(5.0))], name="FRAMES")
        sink.append(table)
        sink.finish()


def test_planes_headers_and_checksums(tmp_path, data) -> None:
    path = tmp_path / "mosaic.fits"
    write(path, data, late=8)
    with fits.open(path, checksum=True) as file:  # a wrong checksum is a warning, which is an error here
        file.verify("exception")
        assert [hdu.name for hdu in file] == ["PRIMARY", "UNCERT", "NCOMB", "FLAGS", "FRAMES"]
        for hdu, plane in zip(file, data.values(), strict=False):
            np.testing.assert_array_equal(hdu.data, plane)
            assert "CHECKSUM" in hdu.header
        assert file[0].header["LATE7"] == 7
    ccd = CCDData.read(path)
    np.testing.assert_array_equal(ccd.uncertainty.array, data["UNCERT"])
    assert [p.name for p in tmp_path.iterdir()] == ["mosaic.fits"]


def _break(sink, data) -> None:
    sink.write("", 0, 0, data[""])
    raise KeyboardInterrupt


def test_an_older_file_stays_whole_when_the_run_breaks(tmp_path, data) -> None:
    path = tmp_path / "mosaic.fits"
    write(path, data)
    before = path.read_bytes()
    with (
        pytest.raises(KeyboardInterrupt),
        output.FitsSink(path, (70, 91), PLANES, fits.Header(), overwrite=True) as sink,
    ):
        _break(sink, data)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["mosaic.fits"]


def test_targets_are_refused_before_any_work(tmp_path, data) -> None:
    path = tmp_path / "mosaic.fits"
    write(path, data)
    with pytest.raises(OutputError, match="--overwrite"):
        output.check_target(path, overwrite=False)
    with pytest.raises(OutputError, match="is a directory"):
        output.check_target(tmp_path, overwrite=True)
    with pytest.raises(OutputError, match="does not exist"):
        output.check_target(tmp_path / "no" / "mosaic.fits", overwrite=True)


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
def test_a_full_disk(tmp_path, data, monkeypatch, call: str) -> None:
    path = tmp_path / "mosaic.fits"
    write(path, data)
    before = path.read_bytes()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OutputError, match="No space left"):
        write(path, data, overwrite=True)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["mosaic.fits"]


@pytest.mark.parametrize("where", ["open", "posix_fallocate"])
def test_an_interrupt_before_the_context_is_entered_leaves_nothing(tmp_path, monkeypatch, where) -> None:
    """A signal may come between the call that makes the file and the `with` that would remove it."""
    call = getattr(os, where)

    def interrupted(*args, **kwargs):
        call(*args, **kwargs)
        assert len(list(tmp_path.iterdir())) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(output.os, where, interrupted)
    try:
        output.FitsSink(tmp_path / "mosaic.fits", (70, 91), PLANES, fits.Header())
    except KeyboardInterrupt:
        gc.collect()
    else:
        pytest.fail("was not interrupted")
    assert not list(tmp_path.iterdir())


def test_a_sink_that_was_never_entered_leaves_nothing(tmp_path) -> None:
    sink = output.FitsSink(tmp_path / "mosaic.fits", (70, 91), PLANES, fits.Header())
    assert len(list(tmp_path.iterdir())) == 1
    del sink
    gc.collect()
    assert not list(tmp_path.iterdir())
