from __future__ import annotations

import multiprocessing
import operator
import os
import time
from collections.abc import Iterator

import pytest

from wosac_toolkit import workers
from wosac_toolkit.errors import WosacError
from wosac_toolkit.workers import Crew


@pytest.mark.parametrize(("n_workers", "chunk_size"), [(1, 4), (2, 1), (2, 4)])
def test_every_task_is_answered_once(n_workers: int, chunk_size: int) -> None:
    with Crew(operator.neg, n_workers) as crew:
        assert sorted(crew.map(range(20), chunk_size)) == [(n, -n) for n in range(20)]
        # And the crew is ready for more.
        assert sorted(crew.map([7, 8])) == [(7, -7), (8, -8)]
        assert list(crew.map([])) == []


def test_tasks_are_read_only_as_they_are_needed() -> None:
    read = 0

    def tasks() -> Iterator[int]:
        nonlocal read
        for number in range(100):
            read = number + 1
            yield number

    with Crew(operator.neg, 2) as crew:
        for n_answered, _ in enumerate(crew.map(tasks(), chunk_size=3), start=1):
            # A chunk in each worker and a chunk ahead for each.
            assert read <= n_answered + 2 * 3 + 2 * 3
    assert read == 100


def test_workers_end_with_the_block_even_in_the_middle_of_their_tasks() -> None:
    with Crew(time.sleep, 2) as crew:
        next(crew.map([0, 60, 60, 60]))
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()


def test_one_worker_is_this_process() -> None:
    with Crew(lambda _: os.getpid(), 1) as crew:
        assert {pid for _, pid in crew.map(range(3))} == {os.getpid()}


def test_workers_have_one_thread_each_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with Crew(os.getenv, 2) as crew:
        found = dict(crew.map(["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"]))
    assert found == {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "3"}
    assert "OPENBLAS_NUM_THREADS" not in os.environ


def test_a_worker_that_ends_is_an_error_that_names_its_task() -> None:
    with (
        Crew(os._exit, 2) as crew,
        pytest.raises(WosacError, match=r"^7: a worker process ended with exit code 7"),
    ):
        list(crew.map([7]))


def test_few_scenes_start_few_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "n_cpus", lambda: 8)
    assert [workers.n_workers(None, n) for n in (0, 10, 40, 10_000)] == [1, 1, 2, 8]
    assert workers.n_workers(3, 10) == 3
