"""Things side by side on the host: in order, and over at the first error."""

import threading

import pytest

from fairjax.threads import threaded


def test_results_come_in_order_whoever_is_done_first():
    second_done = threading.Event()

    def fn(item):
        if item == 0:
            assert second_done.wait(30)  # only another thread can go on
        else:
            second_done.set()
        return item

    assert list(threaded(fn, range(3), 2)) == [0, 1, 2]


def test_an_error_comes_in_its_turn_after_the_results_before_it():
    results = threaded(lambda item: 1 // item, [1, 0, 1], 2)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []
