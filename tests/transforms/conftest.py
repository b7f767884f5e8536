"""What tests of several transforms start from."""

from pathlib import Path

import pytest

from tests.transforms.embedding import write_folder


@pytest.fixture
def folder(tmp_path) -> Path:
    """Forty small pictures with two labels."""
    return write_folder(tmp_path / "images")
