"""Items made by another thread before they are needed."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator

import pytest

from smart_r1.read_ahead import read_ahead


@pytest.mark.parametrize("n", [1, 2, 20])
def test_items_are_made_ahead_and_in_order(n: int) -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            yield number

    found = []
    for number in read_ahead(items(), n=n):
        found.append(number)
        assert len(made) <= number + 1 + n
    assert found == list(range(10))


def test_the_next_item_is_made_while_one_is_worked_on() -> None:
    second = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        second.set()
        yield 2

    ahead = read_ahead(items())
    assert next(ahead) == 1
    assert second.wait(60)
    assert list(ahead) == [2]


def test_what_goes_wrong_is_told_where_the_item_would_have_come() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("torn")

    ahead = read_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="torn"):
        next(ahead)


def test_nothing_is_read_ahead_of_nothing() -> None:
    assert list(read_ahead([])) == []


def test_one_who_leaves_early_leaves_no_thread() -> None:
    before = threading.active_count()
    running = read_ahead(range(10))
    assert isinstance(running, Generator)
    next(running)
    assert threading.active_count() == before + 1
    running.close()
    assert threading.active_count() == before
