"""Items made by another thread before they are needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def read_ahead(items: Iterable[T], n: int = 2) -> Iterator[T]:
    """The items, made by another thread while the caller works on those before.

    What goes wrong in making an item is raised where the item would have come.

    Args:
        items: what to make; nothing is before the first item is asked for.
        n: how many to be ahead, at most; at least 1.
    """
    end = object()
    iterator = iter(items)
    pool = ThreadPoolExecutor(1)
    try:
        waiting = deque(pool.submit(next, iterator, end) for _ in range(n))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, iterator, end))
            yield item  # type: ignore[misc]
    finally:
        pool.shutdown(cancel_futures=True)
