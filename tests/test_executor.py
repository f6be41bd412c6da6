"""Order, first error, and nothing left running."""

from __future__ import annotations

import threading
import time

import pytest

from fastack.executor import Executor, available_threads


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_results_come_in_the_order_of_the_tasks(threads: int) -> None:
    def work(k: int) -> int:
        time.sleep(0.001 * (k % 3))
        return k * k

    with Executor(threads) as executor:
        assert list(executor.map(work, range(40))) == [k * k for k in range(40)]


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


def test_thread_count_from_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("FASTACK_NUM_THREADS", "5")
    assert available_threads() == 5
    monkeypatch.setenv("FASTACK_NUM_THREADS", "many")
    with pytest.raises(ValueError, match="FASTACK_NUM_THREADS"):
        available_threads()
