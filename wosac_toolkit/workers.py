"""Processes that work on scenes side by side, and the bar that counts what they finish."""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import TYPE_CHECKING, Generic, NoReturn, TypeVar

from wosac_toolkit.errors import WosacError

if TYPE_CHECKING:
    from tqdm import tqdm

Task = TypeVar("Task")
Result = TypeVar("Result")

_SCENES_WORTH_A_PROCESS = 16


def n_workers(workers: int | None, n_scenes: int) -> int:
    """How many processes: as asked for; else one a CPU, fewer for few scenes.

    Starting a process and loading the kernels takes as long as scoring some tens of scenes.
    """
    if workers is not None:
        if workers < 1:
            raise WosacError(f"workers must be at least 1, not {workers}")
        return workers
    return max(1, min(n_cpus(), n_scenes // _SCENES_WORTH_A_PROCESS))


def n_cpus() -> int:
    """The CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Crew(Generic[Task, Result]):
    """Processes of one thread each that apply a function to tasks.

    A worker gets its next chunk when it has answered the last, so that neither tasks nor results
    queue up, however many there are, and no pipe can fill from both ends; meanwhile a chunk a
    worker is read ahead. The workers end with the block, and by themselves if this process is
    killed.

    >>> with Crew(operator.neg, workers=2) as crew:  # doctest: +SKIP
    ...     for task, result in crew.map(range(10)):
    ...         print(task, result)
    """

    def __init__(
        self,
        function: Callable[[Task], Result],
        workers: int,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        """Start the workers.

        Args:
            function: can be pickled, and so can its results; must not raise.
            workers: how many processes; with 1, `function` runs in this process.
            prepare: what a worker calls before its first task, at best before there is one.
        """
        self._function = function
        self._workers: list[_Worker[Task, Result]] = []
        try:
            for _ in range(workers if workers > 1 else 0):
                self._workers.append(_start_worker(function, prepare))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Crew[Task, Result]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, whatever they are at."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()
        self._workers = []

    def __len__(self) -> int:
        return max(1, len(self._workers))

    def map(self, tasks: Iterable[Task], chunk_size: int = 1) -> Iterator[tuple[Task, Result]]:
        """Apply the function.

        Args:
            tasks: read as they are needed; `str` of one names it in messages.
            chunk_size: tasks that a worker gets at a time.

        Yields:
            (task, result), in the order in which they are ready.

        Raises:
            WosacError: a worker died.
        """
        if not self._workers:
            for task in tasks:
                yield task, self._function(task)
            return
        remaining = iter(tasks)
        ahead: deque[list[Task]] = deque()
        for worker in self._workers:
            if chunk := list(islice(remaining, chunk_size)):
                _send(worker, chunk)
        while busy := [worker for worker in self._workers if worker.tasks]:
            while len(ahead) < len(busy) and not _ready(busy, timeout=0):
                if not (chunk := list(islice(remaining, chunk_size))):
                    break
                ahead.append(chunk)
            for worker in _ready(busy, timeout=None):
                result = _receive(worker)
                done = worker.tasks.popleft()
                if not worker.tasks:
                    chunk = ahead.popleft() if ahead else list(islice(remaining, chunk_size))
                    if chunk:
                        _send(worker, chunk)
                yield done, result


@dataclass(eq=False, slots=True)
class _Worker(Generic[Task, Result]):
    """A process and the tasks that it has not answered yet."""

    process: SpawnProcess
    connection: Connection[list[Task], Result]
    tasks: deque[Task] = field(default_factory=deque)


def _ready(
    workers: Sequence[_Worker[Task, Result]], timeout: float | None
) -> list[_Worker[Task, Result]]:
    """The workers that have answered, or died."""
    ready = wait([worker.connection for worker in workers], timeout)
    return [worker for worker in workers if worker.connection in ready]


def _start_worker(
    function: Callable[[Task], Result], prepare: Callable[[], object] | None
) -> _Worker[Task, Result]:
    # A forked process would inherit locks and threads of whatever this one has loaded.
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, function, prepare), daemon=True)
    with _one_thread(), _keyboard_interrupt_held():
        process.start()
    theirs.close()
    return _Worker(process, ours)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let processes start with one thread: libraries look at these variables when they load.

    OpenBLAS would spin up a thread a CPU in each worker as soon as NumPy is imported.
    """
    names = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    unset = [name for name in names if name not in os.environ]
    os.environ.update(dict.fromkeys(unset, "1"))
    try:
        yield
    finally:
        for name in unset:
            del os.environ[name]


@contextmanager
def _keyboard_interrupt_held() -> Iterator[None]:
    """Let processes start deaf to Ctrl-C, which reaches every process of a terminal.

    This one answers it, and ends its workers itself; they would only print tracebacks.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _send(worker: _Worker[Task, Result], chunk: list[Task]) -> None:
    worker.tasks.extend(chunk)
    try:
        worker.connection.send(chunk)
    except OSError:
        raise _death(worker) from None


def _receive(worker: _Worker[Task, Result]) -> Result:
    try:
        return worker.connection.recv()
    except (EOFError, OSError):
        raise _death(worker) from None


def _death(worker: _Worker[Task, Result]) -> WosacError:
    worker.process.join(timeout=5)
    code = worker.process.exitcode
    if code is None:
        how = "stopped answering"
    elif code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
    else:
        how = f"ended with exit code {code}"
    mend = "finished scenes are kept with --out, and the same command resumes"
    if code == -signal.SIGKILL:
        mend = f"out of memory? use fewer --workers; {mend}"
    return WosacError(f"a worker process {how}", where=str(worker.tasks[0]), mend=mend)


def _work(
    connection: Connection[Result, list[Task]],
    function: Callable[[Task], Result],
    prepare: Callable[[], object] | None,
) -> None:
    """What a worker process does: answer chunks of tasks one by one, until the pipe is closed."""
    if prepare is not None:
        prepare()
    try:
        while True:
            for task in connection.recv():
                connection.send(function(task))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def progress_bar(total: int, *, what: str, show: bool = True) -> tqdm[NoReturn]:
    """A bar on stderr that counts scenes, with their rate and the remaining time."""
    from tqdm import tqdm  # Not at the top: the workers have no use for it.

    bar: tqdm[NoReturn] = tqdm(
        total=total,
        unit=" scenes",
        desc=what,
        disable=not show,
        smoothing=0,
        # A log file gets a line every ten seconds, not ten a second.
        mininterval=0.1 if sys.stderr.isatty() else 10.0,
    )
    return bar
