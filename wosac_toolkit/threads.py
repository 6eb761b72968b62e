"""Threads within one process: kernels release the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise


def spread(work: Callable[[int, int], None], n: int, threads: int) -> None:
    """Do `work` on `n` items in equal shares, one a thread, of which the calling one is the first.

    Args:
        work: takes where a share starts and stops. It should spend its time in kernels: of what
            else it does, only one thread at a time can do something.
        n: the number of items.
        threads: at most so many.
    """
    n_shares = max(min(threads, n), 1)
    ends = [n * i // n_shares for i in range(n_shares + 1)]
    if n_shares == 1:
        work(0, n)
        return
    pool = kept_threads(n_shares - 1, "shares")
    others = [pool.submit(work, *share) for share in pairwise(ends[1:])]
    try:
        work(*ends[:2])
    finally:
        wait(others)
    for other in others:
        other.result()


@cache
def kept_threads(threads: int, what: str) -> ThreadPoolExecutor:
    """Threads that are kept: starting them takes as long as a tenth of a score.

    Each layer of work has its own, named by `what`: one that waits for threads it is itself among
    could wait forever.
    """
    return ThreadPoolExecutor(threads, thread_name_prefix=f"wosac-{what}")


if hasattr(os, "register_at_fork"):
    # A forked process inherits the pool but not its threads, and would wait for them forever.
    os.register_at_fork(after_in_child=kept_threads.cache_clear)
