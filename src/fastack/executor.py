"""The one place where work runs in parallel.

A function is mapped over frames (pass 1) or over tiles of the output (pass 2). Kernels release the GIL, so a thread
pool is enough on one machine; the same calls go to a Dask cluster with `scheduler`. Results come back in the order
of the tasks, whoever finished first, so that no sum ever depends on the number of workers.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Self, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def available_threads() -> int:
    """Number of processors that this process may use.

    Returns
    -------
    int
        ``FASTACK_NUM_THREADS`` where it is set, else the affinity count.

    Raises
    ------
    ValueError
        If ``FASTACK_NUM_THREADS`` is no positive integer.
    """
    text = os.environ.get("FASTACK_NUM_THREADS")
    if text:
        if not text.isdigit() or int(text) < 1:
            raise ValueError(f"FASTACK_NUM_THREADS is {text!r}, not a positive integer")
        return int(text)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Executor(AbstractContextManager["Executor"]):
    """Maps a function over tasks by threads of this process.

    Parameters
    ----------
    threads : int, optional
        Default: `available_threads`. With 1 everything runs in the caller and no thread is started.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or available_threads()
        if self.threads < 1:
            raise ValueError(f"threads is {threads}, not a positive number")
        self._pool = ThreadPoolExecutor(self.threads, "fastack") if self.threads > 1 else None

    def map(self, function: Callable[[T], R], tasks: Iterable[T], *, ahead: int | None = None) -> Iterator[R]:
        """Results in the order of `tasks`.

        Parameters
        ----------
        function : callable
            Called once for each task, from any thread.
        tasks : iterable
            Taken one by one, as there is room.
        ahead : int, optional
            Tasks under way at once; default the number of threads plus one.

        Yields
        ------
        object
            ``function(task)``; the first exception ends the map, and nothing new is started.
        """
        if self._pool is None:
            yield from map(function, tasks)
            return
        room = ahead or self.threads + 1
        waiting: deque[Future[R]] = deque()
        try:
            for task in tasks:
                waiting.append(self._pool.submit(function, task))
                if len(waiting) >= room:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """Wait for what runs and stop the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class DaskExecutor(Executor):
    """Maps a function over tasks by the workers of a Dask cluster.

    Parameters
    ----------
    address : str
        Of the scheduler, ``tcp://host:port``. Workers read the frames by the same paths as this process.
    """

    def __init__(self, address: str) -> None:
        from distributed import Client

        super().__init__(1)
        self._client: Any = Client(address)
        self.threads = max(1, sum(self._client.nthreads().values()))

    def map(self, function: Callable[[T], R], tasks: Iterable[T], *, ahead: int | None = None) -> Iterator[R]:
        """Results in the order of `tasks`; see `Executor.map`."""
        room = ahead or 2 * self.threads
        waiting: deque[Any] = deque()
        try:
            for task in tasks:
                waiting.append(self._client.submit(function, task, pure=False))
                if len(waiting) >= room:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """Leave the cluster."""
        self._client.close()


def make_executor(threads: int | None = None, scheduler: str | None = None) -> Executor:
    """The executor that the options ask for.

    Parameters
    ----------
    threads : int, optional
        For the thread pool.
    scheduler : str, optional
        Address of a Dask cluster; needs ``pip install 'fastack[cluster]'``.

    Returns
    -------
    Executor
        To be used in a ``with`` statement.
    """
    return DaskExecutor(scheduler) if scheduler else Executor(threads)
