import os
import stat

import pytest

from benchmarks import ledger as benchmark
from benchmarks import postgres


@pytest.fixture(scope="session")
def server():
    """The URL of an empty database of a real PostgreSQL server."""
    if why := postgres.missing():
        pytest.skip(why)
    with postgres.server("fsync=off", "max_connections=100") as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """A ledger without tables, in either database."""
    if request.param == "sqlite":
        yield str(tmp_path / "ledger.sqlite")
        return
    found = request.getfixturevalue("server")
    yield found
    benchmark.forget(found)


@pytest.fixture
def mode():
    return lambda path: stat.S_IMODE(os.stat(path).st_mode)
