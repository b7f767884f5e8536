import threading

from dpgmm_beam.cache import BlockCache


class Reader:
    """Blocks of a given size, and which of them were read."""

    def __init__(self, size):
        self.size = size
        self.read = []

    def __call__(self, cache, group, key, limit):
        def compute():
            self.read.append((group, key))
            return f"{group}/{key}", self.size

        assert cache.get(group, key, compute, limit) == f"{group}/{key}"


def test_a_block_is_read_once():
    cache, reader = BlockCache(), Reader(10)
    for _ in range(3):
        for key in range(4):
            reader(cache, "rows", key, 100)
    assert reader.read == [("rows", key) for key in range(4)]


def test_what_does_not_fit_is_read_again_and_the_rest_stays():
    cache, reader = BlockCache(), Reader(10)
    for _ in range(3):
        for key in range(5):
            reader(cache, "rows", key, 35)
    # Three fit; the other two are read in every round.
    assert [reader.read.count(("rows", key)) for key in range(5)] == [1, 1, 1, 3, 3]


def test_another_group_takes_the_room():
    cache, reader = BlockCache(), Reader(10)
    for key in range(3):
        reader(cache, "old", key, 30)
    for _ in range(2):
        for key in range(3):
            reader(cache, "new", key, 30)
    assert [reader.read.count(("new", key)) for key in range(3)] == [1, 1, 1]
    reader(cache, "old", 0, 30)
    assert reader.read.count(("old", 0)) == 2


def test_no_room_and_cleared():
    cache, reader = BlockCache(), Reader(10)
    for _ in range(2):
        reader(cache, "rows", 0, 0)
    assert len(reader.read) == 2
    reader(cache, "rows", 0, 10)
    cache.clear()
    reader(cache, "rows", 0, 10)
    assert len(reader.read) == 4


def test_threads_get_their_blocks():
    cache, reader, errors = BlockCache(), Reader(10), []

    def work(group):
        try:
            for step in range(300):
                reader(cache, group, step % 7, 45)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(f"group {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert cache._bytes <= 45
    assert cache._bytes == sum(size for entries in cache._groups.values() for _, size in entries.values())
