import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from transforms.ordered_map import ordered_map


@pytest.fixture
def workers():
    with ThreadPoolExecutor(3) as pool:
        yield pool


def by(workers, work):
    return lambda item: workers.submit(work, item)


@pytest.mark.parametrize("ahead", [1, 2, 5, 100])
def test_results_come_in_the_order_of_the_items(workers, ahead):
    assert list(ordered_map(by(workers, lambda x: x * x), range(20), ahead)) == [x * x for x in range(20)]
    assert list(ordered_map(by(workers, lambda x: x), [], ahead)) == []


def test_a_slow_item_does_not_come_last(workers):
    others_are_done = threading.Event()
    done = []

    def work(item):
        if item == 0:
            assert others_are_done.wait(30)
        else:
            done.append(item)
            if len(done) == 2:
                others_are_done.set()
        return item

    assert list(ordered_map(by(workers, work), range(3), 3)) == [0, 1, 2]


@pytest.mark.parametrize("ahead", [1, 3])
def test_no_more_than_so_many_items_are_taken_ahead(workers, ahead):
    taken = []

    def items():
        for item in range(10):
            taken.append(item)
            yield item

    for count, _ in enumerate(ordered_map(by(workers, lambda x: x), items(), ahead), 1):
        # Those that were handed out, those under way, and the one that waits for a place.
        assert len(taken) <= count + ahead
    assert len(taken) == 10


@pytest.mark.parametrize("most", [0, 7, 10, 1000])
def test_heavy_items_are_few_at_once(workers, most):
    weights = [3, 4, 9, 50, 1, 1, 1, 1, 8, 2]
    held, results = [], []

    def start(item):
        held.append(item)
        under_way = sum(held) - sum(results)
        assert under_way <= most or under_way == item
        return workers.submit(lambda: item)

    for result in ordered_map(start, weights, 4, lambda item: item, most):
        results.append(result)
    assert results == weights


def test_a_failure_comes_where_its_result_would(workers):
    def work(item):
        if item == 2:
            raise KeyError(item)
        return item

    results = ordered_map(by(workers, work), range(5), 5)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(KeyError):
        next(results)
