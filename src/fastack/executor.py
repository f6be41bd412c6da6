"""The one place where work runs in parallel.

A function is mapped over frames (pass 1) or over tiles of the output (pass 2). Kernels release the GIL, so a thread
pool is enough on one machine; the same calls go to a Dask cluster with `scheduler`. Results come back in the order
of the tasks, whoever finished first, so that no sum ever depends on the number of workers.
"""

from __future__ import annotations

import functools
import importlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Self, TypeVar

import numpy as np

from fastack import __version__, _pixels
from fastack.types import FloatImage

T = TypeVar("T")
R = TypeVar("R")

_LINE = 16  # float32 in a line of the cache


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


class Buffers:
    """Images that one task leaves to the next: fresh memory is cleared page by page before it can be written.

    At most as many are there as tasks ran at once. Sent to another process they become that process's own.

    Parameters
    ----------
    least : int
        Pixels that each image has room for; what is not written takes no memory.
    """

    def __init__(self, least: int = 0) -> None:
        self.least = least
        self._idle: list[FloatImage] = []

    def __reduce__(self) -> tuple[Callable[[], Buffers], tuple[()]]:
        return _own_buffers, ()

    @contextmanager
    def lend(self, shape: tuple[int, int]) -> Iterator[FloatImage]:
        """An image for the time of a `with` block.

        Parameters
        ----------
        shape : tuple of int
            Height and width.

        Yields
        ------
        (ny, nx) float32 ndarray
            C-contiguous, on a border of 64 bytes; what it holds has no meaning.
        """
        size = shape[0] * shape[1]
        try:
            whole = self._idle.pop()
        except IndexError:
            whole = None
        if whole is None or whole.size < size:
            room = max(size, self.least)
            raw = np.empty(room + _LINE, np.float32)
            first = -(raw.ctypes.data // raw.itemsize) % _LINE
            whole = raw[first : first + room]
        try:
            yield whole[:size].reshape(shape)
        finally:
            self._idle.append(whole)

    def trim(self) -> None:
        """Let go of images that are larger than `least`; none may be lent."""
        self._idle = [image for image in self._idle if image.size <= self.least]


@functools.cache
def _own_buffers() -> Buffers:
    """Those of this process, which its tasks share."""
    return Buffers()


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
        self.here = self.threads  #: those of them that run in this process
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
            Tasks under way at once, if there are to be fewer than threads. By default so many wait that no thread
            does, where the caller is busy or an earlier task takes longer.

        Yields
        ------
        object
            ``function(task)``; the first exception ends the map: nothing new is started, and nothing runs any more when
            it leaves, so that what the tasks share can be closed.
        """
        if self._pool is None:
            yield from map(function, tasks)
            return
        room = ahead or 2 * self.threads
        waiting: deque[Future[R]] = deque()
        try:
            for task in tasks:
                waiting.append(self._pool.submit(function, task))
                if len(waiting) >= room:
                    yield self._first(waiting)
            while waiting:
                yield self._first(waiting)
        finally:
            wait([future for future in waiting if not future.cancel()])

    @staticmethod
    def _first(waiting: deque[Future[R]]) -> R:
        """Result of the first, which waits with the others until it is there: an interrupt must not lose it."""
        result = waiting[0].result()
        waiting.popleft()
        return result

    def start(self, function: Callable[..., R], *arguments: Any) -> Callable[[], R]:
        """Begin one call in a thread of this process.

        Parameters
        ----------
        function : callable
            What is called.
        *arguments
            Of the call.

        Returns
        -------
        callable
            Gives the result, or raises what the call raised, once it is there. With one thread the call is made then.
        """
        if self._pool is None:
            return functools.partial(function, *arguments)
        return self._pool.submit(function, *arguments).result

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

    Every worker, and this process, uses the lowest instruction set that all of them have, so that a pixel does not
    depend on who computed it.

    Parameters
    ----------
    address : str
        Of the scheduler, ``tcp://host:port``. Workers read the frames by the same paths as this process, and have the
        same version of fastack.

    Raises
    ------
    ValueError
        If dask is not installed, the scheduler does not answer, it has no workers, or they have another version.
    """

    def __init__(self, address: str) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise ValueError("--scheduler needs dask.distributed: pip install 'fastack[cluster]'") from error
        super().__init__(1)
        self.here = 0
        try:
            self._client: Any = Client(address, timeout=_PATIENCE)
        except (OSError, TimeoutError, ValueError) as error:
            raise ValueError(f"no Dask scheduler answers at {address}: start one with 'dask scheduler'") from error
        try:
            self.threads = sum(self._client.nthreads().values())
            if not self.threads:
                raise ValueError(f"the Dask scheduler at {address} has no workers: start some with 'dask worker'")
            there = self._client.run(_capability)
            if versions := {version for version, _ in there.values()} - {__version__}:
                raise ValueError(f"workers have fastack {', '.join(sorted(versions))}, this is {__version__}")
            # levels are listed from the lowest up, and each machine has all of those below its best
            everyone = [levels for _, levels in there.values()] + [_pixels.isa_levels()]
            self._client.run(_pixels._choose_isa, min(everyone, key=len)[-1])
            _pixels._choose_isa(min(everyone, key=len)[-1])
        except BaseException:
            self._client.close()
            raise

    def map(self, function: Callable[[T], R], tasks: Iterable[T], *, ahead: int | None = None) -> Iterator[R]:
        """Results in the order of `tasks`; see `Executor.map`."""
        room = ahead or 2 * self.threads
        waiting: deque[Any] = deque()
        # what all tasks share travels once to each worker, not with each task
        (shared,) = self._client.scatter([function], broadcast=True, hash=False)
        try:
            for task in tasks:
                waiting.append(self._client.submit(_call, shared, task, pure=False))
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
        _pixels._choose_isa(os.environ.get("FASTACK_ISA") or None)


_PATIENCE = 10.0  # second: for a scheduler to answer


def _call(function: Callable[[T], R], task: T) -> R:
    return function(task)


def _capability() -> tuple[str, list[str]]:
    """Version and instruction sets of the process that this runs in."""
    return __version__, _pixels.isa_levels()


@contextmanager
def preload(*modules: str) -> Iterator[None]:
    """Import modules beside the work of a ``with`` block; they are there when it ends.

    Parameters
    ----------
    *modules : str
        In this order. What cannot be imported raises where it is used.

    Notes
    -----
    Within the block, other threads may import these modules, but none that they lead to: two that enter a circle of
    imports at different places may see one another's modules half made.
    """

    def load() -> None:
        for name in modules:
            with suppress(Exception):
                importlib.import_module(name)

    thread = threading.Thread(target=load, name="fastack-preload")
    thread.start()
    try:
        yield
    finally:
        thread.join()


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
