from __future__ import annotations

import threading

import pytest

from moorage.kernels.threads import run_by_threads, run_each


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 200])
def test_each_number_is_run_once(count, workers):
    done = []
    run_each(done.append, count, workers)
    assert sorted(done) == list(range(count))


def test_others_run_meanwhile():
    both_here = threading.Barrier(2, timeout=30)
    run_by_threads(both_here.wait, 2)


def test_nobody_is_waited_for_who_has_not_begun():
    """With all threads of the pool taken, the one that calls does the work, and returns."""
    begun, let_go, done = threading.Semaphore(0), threading.Event(), []

    def hold():
        begun.release()
        let_go.wait(30)

    holders = threading.Thread(target=run_by_threads, args=(hold, 1000))
    holders.start()
    begun.acquire()
    begun.acquire()  # at least the caller and one thread of the pool
    run_by_threads(lambda: done.append(threading.current_thread()), 1000)
    assert threading.current_thread() in done
    let_go.set()
    holders.join()


def test_what_one_raises_is_raised_when_all_have_returned():
    turns, running = iter(range(10)), threading.Barrier(2, timeout=30)

    def share():
        running.wait()
        if next(turns) == 0:
            raise ValueError("the first one")

    with pytest.raises(ValueError, match="the first one"):
        run_by_threads(share, 2)
