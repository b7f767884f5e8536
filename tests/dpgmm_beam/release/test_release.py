"""Releases of arrays, against the Beam job's; saved, loaded, sampled."""

import io
import json
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpgmm_beam import ConfigError, Release, load_release
from dpgmm_beam.config import Method
from dpgmm_beam.data.rows import SetAside
from dpgmm_beam.privacy.allocation import with_shares
from dpgmm_beam.privacy.noise import NoiseKey
from dpgmm_beam.release import manifest
from pipelines import cli
from tests import small

METHOD = Method(teacher_steps=2, subspace_dim=8)
CONFIG = small.small_config(method=METHOD)
FIT = {
    "epsilon": CONFIG.epsilon,
    "delta": CONFIG.delta,
    "samples_per_class": CONFIG.samples_per_class,
    "n_components": CONFIG.components,
    "rounds": CONFIG.rounds,
    "method": METHOD,
}
KEYED = {"key": small.KEY, "release_id": small.RELEASE_ID}
TABLE = small.table(300)
X = np.array(TABLE["embedding"].to_pylist(), np.float32)
Y = np.array(TABLE["label"].to_pylist())


class Frame:
    """What a data frame has that is asked for."""

    def __init__(self, values):
        self.values = values

    def to_numpy(self):
        return self.values


class Tensor:
    """What a tensor has."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=dtype)


def fit(embeddings=X, labels=Y, **changes) -> Release:
    return Release.fit(embeddings, labels, **{**FIT, "classes": CONFIG.classes, **changes})


def files(release: Release, tmp_path) -> dict[str, bytes]:
    release.save(tmp_path / "saved")
    return small.contents(tmp_path / "saved")


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The Beam job's files of the same rows."""
    folder = tmp_path_factory.mktemp("released")
    source = small.write_rows(folder / "in", TABLE)
    return small.run(source, folder / "out", small.write_key(folder / "key"), config=CONFIG)


OBJECTS = np.empty(len(X), object)
OBJECTS[:] = list(X)

FORMS = {
    "float32": X,
    "float64": X.astype(np.float64),
    "another order in memory": np.asfortranarray(X),
    "lists": X.tolist(),
    "a data frame": Frame(X),
    "a data frame of objects": Frame(X.astype(object)),
    "a column of arrays": Frame(OBJECTS),
    "a tensor": Tensor(X),
    "Arrow's fixed lists": TABLE["embedding"],
    "Arrow's lists": pa.array(X.tolist(), pa.list_(pa.float64())),
    "chunks of large lists": pa.chunked_array([X[:7].tolist(), X[7:].tolist()], pa.large_list(pa.float32())),
}
LABELS = {
    "text": Y,
    "lists": Y.tolist(),
    "objects": Y.astype(object),
    "Arrow": TABLE["label"],
    "a dictionary": TABLE["label"].combine_chunks().dictionary_encode(),
    "a column of a data frame": Frame(Y.astype(object)),
}


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_beam_job_s_release(released, tmp_path, form):
    """File by file, bit for bit."""
    assert files(fit(FORMS[form], **KEYED), tmp_path) == released


@pytest.mark.parametrize("form", LABELS)
def test_labels_of_every_form(released, tmp_path, form):
    assert files(fit(labels=LABELS[form], **KEYED), tmp_path) == released


@pytest.mark.parametrize("threads", [1, 3, 16])
def test_threads_change_nothing(released, tmp_path, threads, monkeypatch):
    monkeypatch.setattr("dpgmm_beam.release.release.BLOCK_ROWS", 7)
    assert files(fit(threads=threads, **KEYED), tmp_path) == released


def test_other_options_and_the_key_as_a_value(tmp_path):
    changes = {"clip_norm": 2.0, "shares": (("means/count", 0.5), *CONFIG.shares[1:])}
    config = small.small_config(method=METHOD, **changes)
    source = small.write_rows(tmp_path / "in", TABLE)
    expected = small.run(source, tmp_path / "out", small.write_key(tmp_path / "key"), config=config)
    found = fit(
        key=NoiseKey(small.KEY), release_id=small.RELEASE_ID, clip_norm=2.0, shares={"means/count": 0.5}
    )
    assert files(found, tmp_path) == expected


def test_what_the_budget_favours():
    assert dict(fit(favor="rows").config.shares) == dict(with_shares([], "rows"))
    with pytest.raises(ConfigError, match="favor=pictures is refused"):
        fit(favor="pictures")


def test_bad_rows_are_set_aside_as_in_files(tmp_path):
    values, labels = [*X.tolist(), None, [1.0], [float("nan")] * 16, [0.0] * 16], [*Y, "a", "a", "a", "a"]
    values.append(X[0].tolist())
    labels.append(None)
    table = pa.table({"label": labels, "embedding": pa.array(values, pa.list_(pa.float32()))})
    source = small.write_rows(tmp_path / "in", table)
    expected = small.in_memory(source, CONFIG)
    objects = np.empty(len(values), object)
    objects[:] = [None if each is None else np.float32(each) for each in values]
    told = []
    for number, embeddings in enumerate((objects, table["embedding"], values)):
        found = fit(embeddings, labels, dimension=16, report=told.append, **KEYED)
        found.save(tmp_path / f"saved{number}")
        assert small.contents(tmp_path / f"saved{number}") == expected
    assert told == [SetAside(length=2, label=1, value=2)] * 3
    # The release itself does not know it.
    assert b"SetAside" not in pickle.dumps(found)


def test_numbers_of_numpy(tmp_path):
    """As they come out of other arrays: the same configuration, and plain JSON."""
    kinds = {"epsilon": np.float64, "delta": np.float64, "samples_per_class": np.int64, "rounds": np.int32}
    changed = {name: kind(FIT[name]) for name, kind in kinds.items()}
    changed.update(n_components=np.int8(2), dimension=np.int64(16), classes=np.array(CONFIG.classes))
    made = fit(**changed)
    assert made.config.digest == CONFIG.digest
    made.save(tmp_path / "saved")
    assert len(load_release(tmp_path / "saved").sample(np.int64(3), seed=np.uint8(1)).labels) == 3


def test_integer_labels_and_no_labels():
    numbers = np.searchsorted(CONFIG.classes, Y)
    one = fit(labels=numbers, classes=("0", "1", "2"), **KEYED)
    two = fit(labels=numbers.astype(str), classes=(0, 1, 2), **KEYED)
    assert one.classes == two.classes == ("0", "1", "2")
    assert one.manifest == two.manifest
    alone = fit(labels=None, classes=None)
    assert alone.classes == ("all",)
    assert not alone.config.labelled
    assert alone.sample(5).labels.tolist() == ["all"] * 5


def test_a_drawn_key_is_another_each_time():
    one, two = fit(), fit()
    assert one.release_id != two.release_id
    for file in one.manifest["files"]:
        # So few rows have no ridges: theirs are zero in both.
        if file["path"] != "mixture/ridges.parquet":
            assert one.read(file["path"]) != two.read(file["path"])


REFUSED = {
    "no classes": ({"classes": None}, "classes"),
    "one text for classes": ({"classes": "abc"}, "classes"),
    "a key alone": ({"key": small.KEY}, "key"),
    "an id alone": ({"release_id": "x"}, "release_id"),
    "a short key": ({"key": b"x", "release_id": "x"}, "secret"),
    "one byte": ({"key": bytes(32), "release_id": "x"}, "key"),
    "an id with a blank": ({"key": small.KEY, "release_id": "a b"}, "release_id"),
    "epsilon": ({"epsilon": -1.0}, "epsilon"),
    "threads": ({"threads": -1}, "threads"),
    "a text for a number": ({"epsilon": "one"}, "epsilon"),
    "part of a component": ({"n_components": 1.5}, "n_components"),
    "a text for a key": ({"key": "x" * 32, "release_id": "x"}, "key"),
    "shares": ({"shares": {"means": 1.0}}, "shares"),
    "one vector": ({"embeddings": X[0]}, "embeddings"),
    "text": ({"embeddings": Y}, "embeddings"),
    "a column of text": ({"embeddings": TABLE["label"]}, "embeddings"),
    "objects": ({"embeddings": [[object()] * 16] * 300}, "embeddings"),
    "dates": ({"embeddings": X.astype("datetime64[s]")}, "embeddings"),
    "several lengths": ({"embeddings": [[1.0], [1.0, 2.0]], "labels": ["a", "b"]}, "dimension"),
    "too few labels": ({"labels": Y[1:]}, "labels"),
    "labels that are floats": ({"labels": np.ones(300)}, "labels"),
    "labels of two columns": ({"labels": np.ones((300, 2), int)}, "labels"),
    "labels of many kinds": ({"labels": ["a", 1, *Y[2:]]}, "labels"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    """By the argument's name, and without a word about a row."""
    changes, argument = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        fit(**changes)
    assert caught.value.argument == argument
    assert str(X[0, 0])[:6] not in str(caught.value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "release"
    fit(**KEYED).save(folder)
    return folder


def test_the_other_verbs_take_it(saved, tmp_path):
    assert cli.main(["verify", "--release", str(saved)]) == 0
    test = small.write_rows(tmp_path / "test", TABLE)
    out = ["--output", str(tmp_path / "network"), "--epochs", "1"]
    assert cli.main(["train", "--synthetic", str(saved), "--test", str(test), *out]) == 0


@pytest.mark.parametrize("rows", [1, 5, 9000])
def test_sampled_rows_are_those_of_dpgmm_sample(saved, tmp_path, rows):
    command = ["sample", "--release", str(saved), "--rows", str(rows), "--seed", "7"]
    assert cli.main([*command, "--output", str(tmp_path / "more")]) == 0
    parts = [pq.read_table(path) for path in sorted((tmp_path / "more").glob("*.parquet"))]
    table = pa.concat_tables(part.replace_schema_metadata() for part in parts)
    found = load_release(saved).sample(rows, seed=7)
    assert found.embeddings.tolist() == table["embedding"].to_pylist()
    assert found.labels.tolist() == table["label"].to_pylist()
    assert found.label_probabilities.tolist() == table["label_probabilities"].to_pylist()
    assert found.component_class.tolist() == table["component_class"].to_pylist()
    assert found.component.tolist() == table["component"].to_pylist()


def test_what_is_loaded_is_what_was_fitted(saved):
    one, two = fit(**KEYED), load_release(saved)
    assert one.manifest == two.manifest
    assert one.privacy["epsilon"] == CONFIG.epsilon
    assert {"delta", "mechanisms", "dp_event", "adjacency"} <= two.privacy.keys()
    assert (two.classes, two.n_components, two.release_id) == (CONFIG.classes, 2, small.RELEASE_ID)
    for release in (two, pickle.loads(pickle.dumps(one)), pickle.loads(pickle.dumps(two))):
        for ask in (one.score_samples, one.predict_proba, one.predict):
            assert np.array_equal(ask(X), getattr(release, ask.__name__)(X))
    # Rows are taken as they are: the fit brings them to norm 1, too.
    rows = X.astype(float)
    assert np.allclose(one.score_samples(rows), one.score_samples(9 * rows))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert np.allclose(one.mixture.log_prob(unit), one.score_samples(rows))
    assert (one.predict(X) == Y).mean() > 0.5
    assert repr(one) == repr(two)
    with pytest.raises(ConfigError, match="shape"):
        one.predict(X[:, :3])
    with pytest.raises(ConfigError, match="shape"):
        one.score_samples(X[:, :3])


def test_numbers_that_are_refused(saved):
    release = load_release(saved)
    for arguments, name in (((0,), "rows"), ((2**31 + 1,), "rows"), ((1, -1), "seed"), ((1, 2**64), "seed")):
        with pytest.raises(ConfigError) as caught:
            release.sample(*arguments)
        assert caught.value.argument == name


def damaged(saved, tmp_path):
    """A copy to spoil."""
    load_release(saved).save(tmp_path / "copy")
    assert small.contents(tmp_path / "copy") == small.contents(saved)
    return tmp_path / "copy"


def test_what_is_no_release_is_refused(saved, tmp_path):
    with pytest.raises(ConfigError, match="manifest"):
        load_release(tmp_path)
    copy = damaged(saved, tmp_path)
    path = copy / "mixture" / "basis.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    release = load_release(copy)
    for ask in (release.sample, lambda: release.mixture, lambda: release.save(tmp_path / "again")):
        with pytest.raises(ConfigError, match=r"hold mixture/basis.parquet as its manifest says"):
            ask()
    assert not (tmp_path / "again").exists()
    # Of a fifo nothing is waited for.
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigError, match=r"basis"):
        load_release(copy).sample(1)


def test_a_manifest_can_t_name_files_of_this_machine(saved, tmp_path):
    copy = damaged(saved, tmp_path)
    content = json.loads((copy / "manifest.json").read_text())
    content["files"][0]["path"] = "../" * 20 + "etc/passwd"
    (copy / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="with the files of a release"):
        load_release(copy)


def test_save_is_whole_or_not_at_all(saved, tmp_path, monkeypatch):
    release = load_release(saved)
    (tmp_path / "empty").mkdir()
    release.save(tmp_path / "empty")
    before = small.contents(tmp_path)
    with pytest.raises(ConfigError, match="empty or a new folder"):
        release.save(tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(ConfigError, match="empty or a new folder"):
            release.save(tmp_path / name)
    (tmp_path / "file").unlink()

    def full(*arguments):
        # Nobody else may look in before it is whole.
        (hidden,) = tmp_path.glob(".other.saving-*")
        assert hidden.stat().st_mode & 0o077 == 0
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dpgmm_beam.release.folder._write", full)
    with pytest.raises(OSError, match="No space"):
        release.save(tmp_path / "other")
    assert small.contents(tmp_path) == before


def test_synthetic_files_are_among_the_files(saved):
    release = load_release(saved)
    paths = [file["path"] for file in release.manifest["files"]]
    (path,) = [path for path in paths if path.startswith(manifest.SYNTHETIC)]
    assert len(pq.read_table(io.BytesIO(release.read(path)))) == 3 * CONFIG.samples_per_class
