"""Work spread over threads."""

import threading

import pytest

from wosac_toolkit.threads import spread


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [0, 1, 5, 32])
def test_each_item_is_done_once_whatever_the_threads(n, threads):
    done = [0] * n

    def work(start, stop):
        for i in range(start, stop):
            done[i] += 1

    spread(work, n, threads)
    assert done == [1] * n


def test_shares_are_equal_and_the_first_is_the_callers():
    shares = {}
    spread(lambda *share: shares.update({share: threading.current_thread()}), 10, 3)
    assert sorted(shares) == [(0, 3), (3, 6), (6, 10)]
    assert shares[0, 3] is threading.current_thread()
    assert threading.current_thread() not in (shares[3, 6], shares[6, 10])


@pytest.mark.parametrize("failing", [0, 1])
def test_a_share_that_fails_is_told_after_all_have_ended(failing):
    ended = threading.Event()

    def work(start, stop):
        if start == 5 * failing:
            raise ValueError("no")
        ended.wait(0.05)
        ended.set()

    with pytest.raises(ValueError, match="no"):
        spread(work, 10, 2)
    assert ended.is_set()
