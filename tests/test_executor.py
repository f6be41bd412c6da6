"""Order, first error, and nothing left running."""

from __future__ import annotations

import contextlib
import pickle
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from fastack.executor import Buffers, Executor, available_threads, make_executor, preload
from fastack.pipeline import stack
from fastack.simulate import NightOptions, simulate_night


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_results_come_in_the_order_of_the_tasks(threads: int) -> None:
    def work(k: int) -> int:
        time.sleep(0.001 * (k % 3))
        return k * k

    with Executor(threads) as executor:
        assert list(executor.map(work, range(40))) == [k * k for k in range(40)]


def test_a_buffer_serves_one_task_at_a_time_and_then_the_next() -> None:
    buffers = Buffers()
    with buffers.lend((7, 31)) as a, buffers.lend((5, 9)) as b:
        assert a.shape == (7, 31) and b.shape == (5, 9)
        assert a.dtype == b.dtype == np.float32 and a.flags.c_contiguous and b.flags.c_contiguous
        assert a.ctypes.data % 64 == b.ctypes.data % 64 == 0
        assert not np.shares_memory(a, b)
    with buffers.lend((4, 9)) as c, buffers.lend((9, 5)) as d:
        assert {np.shares_memory(c, x) for x in (a, b)} == {True, False}
        assert {np.shares_memory(d, x) for x in (a, b)} == {True, False}
        assert not np.shares_memory(c, d)
    with buffers.lend((100, 100)) as large:
        large[:] = 1  # grown, not cut short
    with pickle.loads(pickle.dumps(buffers)).lend((2, 2)) as other:
        assert other.shape == (2, 2)


def test_no_more_tasks_are_taken_than_asked_for() -> None:
    lock, running, most = threading.Lock(), 0, 0

    def work(_: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        with lock:
            running -= 1

    with Executor(4) as executor:
        list(executor.map(work, range(20), ahead=2))
    assert most <= 2


def test_the_first_error_ends_the_map() -> None:
    done = []

    def work(k: int) -> int:
        if k == 3:
            raise ValueError("three")
        done.append(k)
        return k

    with Executor(2) as executor, pytest.raises(ValueError, match="three"):
        list(executor.map(work, range(1000)))
    assert len(done) < 20


def test_nothing_runs_any_more_when_the_map_has_ended() -> None:
    """What the tasks write to is closed after it."""
    running, both = set(), threading.Barrier(2)

    def work(k: int) -> None:
        running.add(k)
        if k < 2:
            both.wait(timeout=10)
        if k == 0:
            running.discard(k)
            raise ValueError("zero")
        time.sleep(0.2)
        running.discard(k)

    with Executor(2) as executor:
        with pytest.raises(ValueError, match="zero"):
            list(executor.map(work, range(100)))
        assert not running
        with contextlib.closing(executor.map(lambda k: work(k + 1000), range(100))) as results:
            next(results)
        assert not running


def test_threads_have_work_while_the_caller_is_busy() -> None:
    done = threading.Semaphore(0)

    with Executor(2) as executor:
        results = executor.map(lambda _: done.release(), range(100))
        next(results)
        for _ in range(4):  # twice as many as threads, of which the caller has taken one
            assert done.acquire(timeout=10)
        list(results)


def test_thread_count_from_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("FASTACK_NUM_THREADS", "5")
    assert available_threads() == 5
    monkeypatch.setenv("FASTACK_NUM_THREADS", "many")
    with pytest.raises(ValueError, match="FASTACK_NUM_THREADS"):
        available_threads()


@pytest.mark.filterwarnings("ignore")  # the cluster's own
def test_a_cluster_makes_the_same_bits_as_threads(tmp_path: Path) -> None:
    """Two processes on this machine stand for the cluster."""
    distributed = pytest.importorskip("distributed")
    options = NightOptions(n_frames=4, shape=(300, 340), n_stars=120, rotation=1.0, cosmic_rays=20.0)
    simulate_night(options).write(tmp_path)
    stack(str(tmp_path / "d*.fits"), output_path=tmp_path / "threads.fits", threads=2)
    # 2 MB of working memory: several tiles
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        stack(str(tmp_path / "d*.fits"), output_path=tmp_path / "cluster.fits", scheduler=address, memory=2_000_000)
    with fits.open(tmp_path / "threads.fits") as one, fits.open(tmp_path / "cluster.fits") as other:
        for k, hdu in enumerate(one[:5]):
            np.testing.assert_array_equal(hdu.data, other[k].data)


def test_a_scheduler_that_is_not_there_is_named() -> None:
    pytest.importorskip("distributed")
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:9.*dask scheduler"):
        make_executor(scheduler="tcp://127.0.0.1:9")


def test_without_dask_the_way_to_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"fastack\[cluster\]"):
        make_executor(scheduler="tcp://127.0.0.1:9")


@pytest.mark.parametrize("threads", [1, 2])
def test_a_call_that_is_started_gives_its_result_or_its_error(threads: int) -> None:
    with Executor(threads) as executor:
        assert executor.start(divmod, 17, 5)() == (3, 2)
        failing = executor.start(divmod, 1, 0)
        with pytest.raises(ZeroDivisionError):
            failing()


def test_modules_are_there_when_the_block_ends_and_a_missing_one_is_no_error(tmp_path, monkeypatch) -> None:
    (tmp_path / "slow_module.py").write_text("import time\ntime.sleep(0.2)\nvalue = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with preload("no_such_module", "slow_module"):
        pass
    assert sys.modules.pop("slow_module").value == 1
