"""The public names: few, documented, each with an example that is tested."""

import doctest
import inspect
import re

import pytest

import dpgmm_beam
import transforms
from tests import small

NAMES = [name for name in dpgmm_beam.__all__ if name != "__version__"]
API = (small.REPOSITORY / "docs" / "api.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_each_has_an_example(name):
    """Pytest runs it: --doctest-modules."""
    found = getattr(dpgmm_beam, name)
    assert doctest.DocTestParser().get_examples(inspect.getdoc(found) or ""), name
    assert found.__module__.startswith("dpgmm_beam.")


@pytest.mark.parametrize("name", [*NAMES, *transforms.__all__])
def test_each_is_listed(name):
    assert re.search(rf"`{name}[`.(]", API), name


def test_all_are_found():
    assert set(dpgmm_beam.__all__) <= set(dir(dpgmm_beam))
    assert sorted(dpgmm_beam.__all__) == sorted([*dpgmm_beam._HOMES, "__version__"])
    for name in transforms.__all__:
        assert inspect.getdoc(getattr(transforms, name))
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = dpgmm_beam.fitt
