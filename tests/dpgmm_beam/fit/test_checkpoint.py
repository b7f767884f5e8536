import dataclasses
import io

import numpy as np
import pytest

from dpgmm_beam.fit import checkpoint as checkpoint_module
from dpgmm_beam.fit.checkpoint import Checkpoint
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.fit.state import FitState
from tests.dpgmm_beam.fit.clusters import checkpoints, plan_of, rows_of, separated


@pytest.fixture(scope="module")
def seen():
    values, _, _ = separated(200, 12, 4, 0.3)
    plan = plan_of(classes=2, rounds=3)
    return checkpoints(plan, rows_of(values, np.arange(200) % 2))


def equal(one, two):
    """Value by value; types and bits, too."""
    if isinstance(one, Plan):
        return one == two
    if dataclasses.is_dataclass(one):
        names = [field.name for field in dataclasses.fields(one)]
        return type(one) is type(two) and all(equal(getattr(one, n), getattr(two, n)) for n in names)
    if isinstance(one, np.ndarray):
        return (one.dtype, one.shape, one.tobytes()) == (two.dtype, two.shape, two.tobytes())
    return type(one) is type(two) and one == two


def test_each_checkpoint_comes_back(seen):
    for number, checkpoint in enumerate(seen):
        again = Checkpoint.from_bytes(checkpoint.to_bytes())
        assert equal(again, checkpoint)
        assert again.plan.budget.noise_multiplier == checkpoint.plan.budget.noise_multiplier
        assert again.digest() == checkpoint.digest()
        assert again.to_bytes() == checkpoint.to_bytes()
        assert checkpoint.stages_done == number
    assert len({checkpoint.digest() for checkpoint in seen}) == len(seen)


def test_sections_are_there_once_their_step_is_done(seen):
    first, after_counts, after_means, after_moment, after_whitened, *_, last = seen
    assert equal(first.state, FitState())
    assert first.takes_data_digest
    assert not after_counts.takes_data_digest
    assert (first.plan.counted, after_counts.plan.counted) == (
        None,
        after_counts.state.class_counts.noisy.sum(),
    )
    assert after_counts.state.class_means is None
    assert after_means.state.class_means is not None
    assert after_means.state.teacher is None
    assert after_moment.state.rough is not None
    assert after_moment.covariance is None
    # A rough covariance is of no use to those who come after.
    assert after_whitened.state.rough is None
    assert after_whitened.covariance is not None
    assert [checkpoint.covariance is None for checkpoint in seen[5:]] == [True] * len(seen[5:])
    assert last.covariance_at == 4


def test_damage_is_found(seen):
    data = seen[-1].to_bytes()
    for position in range(0, len(data), 101):
        damaged = bytearray(data)
        damaged[position] ^= 1
        try:
            found = Checkpoint.from_bytes(bytes(damaged))
        except ValueError:
            continue
        # What the archive holds beside names and values may differ, no value.
        assert found.to_bytes() == data, position
    for length in (0, 10, len(data) - 1):
        with pytest.raises(ValueError, match="not a state"):
            Checkpoint.from_bytes(data[:length])


def test_another_value_than_the_digest_is_of(seen):
    with np.load(io.BytesIO(seen[1].to_bytes())) as file:
        entries = dict(file)
    sink = io.BytesIO()
    np.savez(sink, **{**entries, "state.class_means.counts": np.arange(2.0)})
    with pytest.raises(ValueError, match="digest"):
        Checkpoint.from_bytes(sink.getvalue())


def test_a_checkpoint_that_lacks_a_field_is_refused(seen, monkeypatch):
    """As one that an earlier version left: whole, and of no use."""
    to_arrays = checkpoint_module._to_arrays

    def without(value, prefix=""):
        arrays = to_arrays(value, prefix)
        arrays.pop("state.class_counts.noisy", None)
        return arrays

    monkeypatch.setattr(checkpoint_module, "_to_arrays", without)
    data = seen[1].to_bytes()
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="--restart drops what was begun"):
        Checkpoint.from_bytes(data)


def test_a_checkpoint_of_another_version_is_refused(seen, monkeypatch):
    data = seen[1].to_bytes()
    monkeypatch.setattr("dpgmm_beam.__version__", "9")
    with pytest.raises(RuntimeError, match="driver and workers must be of one version"):
        Checkpoint.from_bytes(data)
