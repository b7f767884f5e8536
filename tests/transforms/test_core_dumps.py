import subprocess
import sys

import pytest

from tests import small

SHOWS = """
import ctypes, resource, sys
from {module} import {name}
{call}
print(resource.getrlimit(resource.RLIMIT_CORE)[0], ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""


def shown(module, name, call, *arguments) -> str:
    code = SHOWS.format(module=module, name=name, call=call)
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=small.REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_process_that_has_a_key_leaves_no_core_dump(tmp_path):
    """Neither as a file (the limit) nor through a pipe, and no other process may look at its memory."""
    key = small.write_key(tmp_path / "key")
    assert shown("transforms.files", "keys", "keys.load(sys.argv[1])", key) == "0 0"
    assert shown("transforms.files", "keys", "").endswith(" 1")


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_nor_does_a_driver():
    assert shown("pipelines", "cli", "cli.run(lambda arguments: 0, [])") == "0 0"
