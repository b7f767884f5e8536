import threading

import numpy as np
import threadpoolctl

from dpgmm_beam.linalg import one_thread


def threads():
    return {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}


def test_one_thread_while_anyone_wants_it():
    np.linalg.eigh(np.eye(3))
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = threads()
        with one_thread():
            with one_thread():
                assert threads() == {1}
            assert threads() == {1}
        assert threads() == before


def test_the_first_to_leave_does_not_lift_the_limit_of_the_others():
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with one_thread():
            entered.set()
            leave.wait(10)

    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = threads()
        other = threading.Thread(target=hold)
        other.start()
        entered.wait(10)
        with one_thread():
            pass
        assert threads() == {1}
        leave.set()
        other.join()
        assert threads() == before


def test_an_error_lifts_the_limit():
    before = threads()
    try:
        with one_thread():
            raise RuntimeError
    except RuntimeError:
        pass
    assert threads() == before


def test_every_thread_can_hold_the_limit_and_any_can_lift_it():
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = threads()
        seen = []

        def hold():
            with one_thread():
                seen.append(threads())

        for _ in range(2):
            with one_thread():
                pass
            other = threading.Thread(target=hold)
            other.start()
            other.join()
        assert seen == [{1}, {1}]
        assert threads() == before
