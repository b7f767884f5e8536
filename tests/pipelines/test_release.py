import json
import os
import pickle
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dpgmm_beam import load_release
from dpgmm_beam.config import Method, ReleaseConfig
from pipelines import class_sizes, cli
from tests import small
from tests.pipelines.words import without_times
from tests.transforms import crate  # noqa: F401  (the scheme crate://)
from transforms.files import inputs
from transforms.files.publish import Publication


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Releases of four stages: what is tested here does not depend on their number."""
    *others, _ = ReleaseConfig.__init__.__defaults__
    monkeypatch.setattr(
        ReleaseConfig.__init__, "__defaults__", (*others, Method(teacher_steps=2, subspace_dim=8))
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return small.write_rows(tmp_path_factory.mktemp("rows") / "in", small.table(200))


def arguments(source, folder, *more):
    return [
        *["release", "--input", str(source), "--encoder", "precomputed", "--classes", "a,b,c"],
        *["--epsilon", "1", "--delta", "1e-5", "--output", str(folder / "out" / "release")],
        *["--samples-per-class", "20", "--private-dir", str(folder / "private"), *more],
    ]


def keyed(folder):
    return ["--noise-key-file", small.write_key(folder / "key"), "--release-id", "r1"]


def refused(argv, capsys):
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert not out
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err
    return err


def without_budget(argv):
    return [each for each in argv if each not in ("--epsilon", "1", "--delta", "1e-5")]


@pytest.mark.parametrize(
    ("budget", "sentence"),
    [
        ([], "--epsilon=(not given) is refused: it must come with --delta; or --mu or --max-advantage in"),
        (["--delta=1e-5"], "--epsilon=(not given) is refused"),
        (["--epsilon=1"], "--delta=(not given) is refused: it must come with --epsilon."),
        (["--mu=.5", "--epsilon=1"], "--mu=0.5 is refused: it must come without --epsilon and --delta"),
        (["--mu=.5", "--delta=1e-5"], "--mu=0.5 is refused: it must come without --epsilon and --delta"),
        (["--max-advantage=.1", "--delta=1e-5"], "--max-advantage=0.1 is refused: it must come without"),
        (["--mu=.5", "--max-advantage=.1"], "--mu=0.5 is refused: it must come without --max-advantage"),
        (["--mu=0"], "--mu=0.0 is refused: it must be a number from 0.0003 to 39."),
        (["--mu=nan"], "--mu=nan is refused"),
        (["--max-advantage=1"], "--max-advantage=1.0 is refused: it must be a number from 0.0002 to 0.9999."),
    ],
)
def test_budgets_that_are_none_or_two(rows, tmp_path, capsys, budget, sentence):
    error = refused([*without_budget(arguments(rows, tmp_path)), *budget], capsys)
    assert sentence in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("budget", "name", "most"), [("--mu=0.25", "mu", 0.25), ("--max-advantage=0.1", "advantage", 0.1)]
)
def test_a_budget_in_what_an_attacker_gains(rows, tmp_path, capsys, budget, name, most):
    argv = [*without_budget(arguments(rows, tmp_path)), *keyed(tmp_path), budget]
    assert cli.main(argv) == 0
    stated = json.loads((tmp_path / "out" / "release" / "manifest.json").read_text())["privacy"]
    assert stated["operational"][name] == most
    assert stated["delta"] == 1e-9
    assert cli.main(["verify", "--release", str(tmp_path / "out" / "release")]) == 0
    # The same command makes the same release.
    assert cli.main(argv) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--epsilon", "0"], "--epsilon=0.0 is refused: it must be a number from 0.001 to 1000."),
        (["--epsilon", "-1"], "--epsilon=-1.0 is refused"),
        (["--epsilon", "inf"], "--epsilon=inf is refused"),
        (["--epsilon", "nan"], "--epsilon=nan is refused"),
        (["--delta", "0"], "--delta=0.0 is refused"),
        (["--delta", "1"], "--delta=1.0 is refused"),
        (["--delta", "nan"], "--delta=nan is refused"),
        (["--classes", ""], "--classes='' is refused: it must name at least one class."),
        (["--classes", "a,b,a"], "--classes=a,b,a is refused: it must be distinct"),
        (["--classes", "a,,b"], "--classes=a,,b is refused: it must hold no empty label."),
        (["--input", "/nowhere/*.parquet"], "--input=/nowhere/*.parquet is refused: it must match something"),
        (["--encoder", "vgg"], "--encoder=vgg is refused"),
        (["--encoder", "efficientnet_lite0"], "--encoder=efficientnet_lite0 is refused"),
        (["--samples-per-class", "0"], "--samples-per-class=0 is refused"),
        (["--components", "0"], "--components=0 is refused"),
        (["--block-rows", "0"], "--block-rows=0 is refused: it must be a whole number from 1 to 65536."),
        (
            ["--block-rows", "65537"],
            "--block-rows=65537 is refused: it must be a whole number from 1 to",
        ),
        (["--threads", "-1"], "--threads=-1 is refused: it must be a whole number from 0 to 256."),
        (["--threads", "257"], "--threads=257 is refused: it must be a whole number from 0 to 256."),
        (["--dimension", "0"], "--dimension=0 is refused: it must be from 1 to 8192."),
        (
            ["--samples-per-class", "1000000000000"],
            "must be a whole number from 1 to 89478485 with 3 classes.",
        ),
        (
            ["--components", "10000000"],
            "--components=10000000 is refused: it must be a whole number from 1 to 1024.",
        ),
        (
            ["--components", "2", "--rounds", "1000"],
            "--rounds=1000 is refused: it must be a whole number from 1 to",
        ),
        (
            [f"--share={name}=1e308" for name in ("means/count", "means/sum")],
            "--share=means/count=1e+308 is refused: it must be a number from 1e-06 to 1,000,000.",
        ),
        (
            ["--share", "means/count=1e-320"],
            "--share=means/count=1e-320 is refused: it must be a number from",
        ),
        (["--input", ""], "--input='' is refused: it must be a path."),
        (["--input", "\udcff"], r"--input=\udcff is refused: it must be a path in UTF-8."),
        (["--classes", "a,\udcff"], r"--classes=\udcff is refused: it must be text in UTF-8."),
        (
            ["--classes", "clases.txt"],
            "--classes=clases.txt is refused: it must be labels with commas between, or",
        ),
        (
            ["--classes", "/no/where"],
            "--classes=/no/where is refused: it must be labels with commas between, or",
        ),
        (["--classes", "/dev/zero"], "--classes=/dev/zero is refused: it must be a readable file of at most"),
        (
            ["--classes", os.fspath("/tmp")],
            "--classes=/tmp is refused: it must be a readable file of at most",
        ),
        (["--output", ""], "--output='' is refused: it must be a path."),
        (["--output", "/proc/x"], "--output=/proc/x is refused: it must be a folder that can be written"),
        (["--output", "/dev/null"], "--output=/dev/null is refused: it must be an empty or a new folder."),
        (["--private-dir", ""], "--private-dir='' is refused: it must be a path."),
        (
            ["--private-dir", "/proc/x"],
            "--private-dir=/proc/x is refused: it must be a folder that can be written",
        ),
        (
            ["--epsilon", "0.001", "--share", "means/sum=1e-6", "--share", "means/count=1e6"],
            "--epsilon=0.001 is",
        ),
        (["--direct_num_workers", "2"], "--direct_num_workers=2 is refused: it must be 1, since a local job"),
        (
            ["--direct_running_mode", "multi_processing", "--direct_num_workers", "1"],
            "--direct_running_mode=multi_processing is refused: it must be in_memory, since a local job",
        ),
        (
            ["--cache-mib", "512"],
            "--cache-mib=512 is refused: it must be an option of this verb or of",
        ),
        (["--clip-norm", "-2"], "--clip-norm=-2.0 is refused"),
        (["--share", "means/count"], "--share=means/count is refused"),
        (["--release-id", "r"], "--release-id=r is refused: it must come together with --noise-key-file."),
        (["--epsilom", "1"], "--epsilom=1 is refused"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals(rows, tmp_path, capsys, change, sentence):
    assert sentence in refused(arguments(rows, tmp_path, *change), capsys)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            ["--output", "AT/rows/out"],
            "--output=AT/rows/out is refused: it must lie apart from --input=AT/rows,",
        ),
        (["--output", "AT"], "--output=AT is refused: it must lie apart from --input=AT/rows,"),
        (
            ["--input", "AT/out/release/rows", "--overwrite"],
            "--output=AT/out/release is refused: it must lie apart",
        ),
        (
            ["--private-dir", "AT/out/release/p"],
            "--output=AT/out/release is refused: it must lie apart from --priv",
        ),
        (
            ["--private-dir", "AT/out/release"],
            "--output=AT/out/release is refused: it must lie apart from --priv",
        ),
        (
            ["--output", "AT/private/x"],
            "--output=AT/private/x is refused: it must lie apart from --private-dir=",
        ),
        (
            ["--private-dir", "AT/rows"],
            "--private-dir=AT/rows is refused: it must be a folder that only its owner",
        ),
        (
            ["--private-dir", "AT/rows/p"],
            "--private-dir=AT/rows/p is refused: it must lie apart from --input=",
        ),
        (
            ["--output", "AT/link"],
            "--output=AT/link is refused: it must be a folder, which is put in its place by",
        ),
        (
            ["--output", "AT/" + "x" * 240],
            "is refused: it must be a folder that can be written (File name too long)",
        ),
    ],
)
def test_places_that_are_refused_before_anything_is_read(
    rows, tmp_path, capsys, monkeypatch, change, sentence
):
    shutil.copytree(rows, tmp_path / "rows")
    (tmp_path / "rows").chmod(0o755)
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "there").mkdir()
    monkeypatch.setattr(inputs, "describe_input", None)
    before = sorted(map(str, tmp_path.rglob("*")))
    change = [each.replace("AT", str(tmp_path)) for each in change]
    said = refused(arguments(tmp_path / "rows", tmp_path, *change), capsys)
    assert sentence.replace("AT", str(tmp_path)) in said
    assert sorted(map(str, tmp_path.rglob("*"))) == before


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_key_of_the_wrong_size(rows, tmp_path, capsys, size):
    key = small.write_key(tmp_path / "key", bytes(size))
    more = ["--noise-key-file", key, "--release-id", "r1"]
    sentence = refused(arguments(rows, tmp_path, *more), capsys)
    assert f"--noise-key-file={key} is refused: it must hold exactly 32 bytes, not {size} bytes." in sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        ({"embedding": pa.array(["x", "y"])}, "--input="),
        ({"embedding": pa.array([[1.0, 2.0], [3.0]])}, "hold embeddings of one length"),
        ({"image": pa.array(["x", "y"])}, "hold encoded images as binary"),
        ({"other": pa.array([1, 2])}, "have a column 'image' (binary) or 'embedding'"),
        ({"embedding": pa.array([[1.0], [3.0]]), "label": pa.array([0.5, 1])}, "hold strings or integers"),
    ],
)
def test_wrong_columns(tmp_path, capsys, column, sentence):
    pq.write_table(pa.table(column), tmp_path / "in.parquet")
    assert sentence in refused(arguments(tmp_path / "in.parquet", tmp_path), capsys)
    assert not (tmp_path / "out").exists()


def test_a_classes_file_that_is_not_text(rows, tmp_path, capsys):
    (tmp_path / "classes").write_bytes(b"\xff\xfe\x00")
    more = ["--classes", str(tmp_path / "classes")]
    assert "be a readable file of text" in refused(arguments(rows, tmp_path, *more), capsys)


def test_a_blank_round_a_class_is_pointed_out(rows, tmp_path, capsys):
    """What is declared is public; whether a row has such a label is not looked at."""
    assert cli.main(arguments(rows, tmp_path, "--classes", "a, b,c")) == 0
    assert "warning: the class ' b' begins or ends with a blank; labels are" in capsys.readouterr().err


def test_columns_by_other_names(rows, tmp_path):
    """The same bytes of the same rows, from Parquet and from arrays; `verify` is told the names, too."""
    table = pq.read_table(rows)
    vectors = np.stack(table["embedding"].to_numpy())
    (tmp_path / "named").mkdir()
    pq.write_table(
        table.rename_columns({"label": "target", "embedding": "v.x"}), tmp_path / "named" / "x.parquet"
    )
    np.savez(tmp_path / "x.npz", **{"v.x": vectors, "target": table["label"].to_numpy().astype("U")})
    columns = ["--label-column", "target", "--embedding-column", "v.x"]
    first = release(rows, tmp_path, *keyed(tmp_path))
    for number, source in enumerate((tmp_path / "named", tmp_path / "x.npz")):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert release(source, folder, *columns, *keyed(folder)) == first
    again = ["verify", "--release", str(folder / "out" / "release"), "--input", str(tmp_path / "x.npz")]
    more = ["--private-dir", str(folder / "verify"), *keyed(folder)[:2]]
    assert cli.main([*again, *more, *columns]) == 0
    assert cli.main([*again, *more]) == 2


def release(source, folder, *more):
    assert cli.main(arguments(source, folder, *more)) == 0
    return small.contents(folder / "out" / "release")


def test_an_output_that_exists(rows, tmp_path, capsys):
    first = release(rows, tmp_path, *keyed(tmp_path))
    # The same release is found made, and nothing changes.
    assert release(rows, tmp_path, *keyed(tmp_path)) == first
    capsys.readouterr()
    for more in ((), (*keyed(tmp_path), "--samples-per-class", "41")):
        sentence = refused(arguments(rows, tmp_path, *more), capsys)
        assert "it must not hold a release already, unless --overwrite is given." in sentence
    assert small.contents(tmp_path / "out" / "release") == first
    (tmp_path / "classes").write_text("a\nb\n\nc\n")
    classes = ["--classes", str(tmp_path / "classes")]
    assert release(rows, tmp_path, *keyed(tmp_path), "--overwrite", *classes) == first
    # More rows of it are the same draw.
    more = release(rows, tmp_path, *keyed(tmp_path), "--overwrite", "--samples-per-class", "41")
    mixture = {name: data for name, data in first.items() if name.startswith("mixture/")}
    assert mixture.items() <= more.items()
    other = release(rows, tmp_path, "--overwrite", "--epsilon", "2")
    assert other.keys() == first.keys()
    assert json.loads(other["manifest.json"])["privacy"]["epsilon"] == 2
    assert os.listdir(tmp_path / "out") == ["release"]


def test_an_id_is_used_once(rows, tmp_path, capsys):
    first = release(rows, tmp_path, *keyed(tmp_path))
    capsys.readouterr()
    for more in (("--epsilon", "2"), ("--classes", "a,b")):
        sentence = refused(arguments(rows, tmp_path, *keyed(tmp_path), "--overwrite", *more), capsys)
        assert "it must be new: it names a release of another configuration" in sentence
    less = small.write_rows(tmp_path / "less", pq.read_table(rows).slice(1))
    sentence = refused(arguments(less, tmp_path, *keyed(tmp_path), "--overwrite"), capsys)
    assert "it must be new: it names a release of other data" in sentence
    assert small.contents(tmp_path / "out" / "release") == first


def test_left_overs_are_named(rows, tmp_path, capsys):
    (tmp_path / "out" / ".release.partial-0123").mkdir(parents=True)
    release(rows, tmp_path)
    said = capsys.readouterr().err
    assert f"warning: {tmp_path}/out/.release.partial-0123 may hold a release that was not published" in said


def test_a_folder_of_something_else(rows, tmp_path, capsys):
    (tmp_path / "out" / "release").mkdir(parents=True)
    (tmp_path / "out" / "release" / "thesis.tex").write_text("years of work")
    argv = arguments(rows, tmp_path, "--overwrite")
    assert "it must be an empty or a new folder." in refused(argv, capsys)
    assert small.contents(tmp_path / "out") == {"release/thesis.tex": b"years of work"}


def test_bad_rows_are_set_aside_and_nothing_shows_it(rows, tmp_path, capfd):
    clean = pq.read_table(rows)
    good = release(rows, tmp_path, *keyed(tmp_path))
    said = capfd.readouterr()
    bad = np.ones((9, 16), np.float32)
    bad[0], bad[1], bad[2], bad[3, 5] = np.nan, np.inf, 0, -np.inf
    bad[4] = 3e38
    labels = ["a"] * 5 + [None, "undeclared", "", "A"]
    extra = small.embeddings_table(labels, bad)
    mixed = pa.concat_tables([extra, clean, extra])
    (tmp_path / "2").mkdir()
    dirty = small.write_rows(tmp_path / "2" / "in", mixed)
    assert release(dirty, tmp_path / "2", *keyed(tmp_path)) == good
    said_again = capfd.readouterr()
    assert without_times(said_again.err) == without_times(said.err)
    assert said_again.out == said.out.replace(str(tmp_path), str(tmp_path / "2"))
    # Only the owner's folder knows, and exactly.
    assert counts(report(tmp_path)) == {"rows": 200, "set_aside": {"length": 0, "label": 0, "value": 0}}
    dirty_labels = report(tmp_path / "2")
    assert dirty_labels["classes"] == report(tmp_path)["classes"]
    assert sum(dirty_labels["classes"].values()) == 200
    assert dirty_labels["labels_not_declared"]["rows"] == {"undeclared": 2, "": 2, "A": 2}
    assert dirty_labels["labels_not_declared"]["null"] == 2
    assert dirty_labels["near_matches"] == [{"label": "A", "declared": "a", "difference": "case"}]
    assert counts(report(tmp_path / "2")) == {
        "rows": 218,
        "set_aside": {"length": 0, "label": 8, "value": 10},
    }


def report(folder):
    """What the only run of a private folder says of its input."""
    (path,) = (folder / "private" / "reports").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    content = json.loads(path.read_bytes())
    assert path.name.startswith(content["release_id"]) or content["release_id"] == "r1"
    (found,) = content["input"]
    return found


def counts(found):
    """How many rows there were, and what was set aside of them."""
    return {name: found[name] for name in ("rows", "set_aside")}


def test_what_was_set_aside_is_nowhere_but_in_the_report(tmp_path, capfd):
    """Numbers that would be conspicuous: looked for in all that is public or said."""
    labels = ["nobody"] * 7919 + [None] * 1 + ["a"] * 31 + ["a"] * 4001
    values = np.ones((len(labels), 4), np.float32)
    values[7920:7951] = np.nan
    source = small.write_rows(tmp_path / "in", small.embeddings_table(labels, values))
    files = release(source, tmp_path, "--classes", "a", "--verbose")
    assert counts(report(tmp_path)) == {"rows": 11952, "set_aside": {"length": 0, "label": 7920, "value": 31}}
    said = "".join(capfd.readouterr()).replace(str(tmp_path), "")
    public = json.dumps(json.loads(files["manifest.json"]))
    for number in ("11952", "7920", "7919", "7951", "4001"):
        assert number not in said
        assert not re.search(rf"(?<![0-9a-f.]){number}(?![0-9a-f])", public)
    for word in ("nobody", "set_aside", "set aside"):
        assert word not in said + public


def test_a_misspelt_class_shows_at_once(tmp_path, capfd):
    """In noisy figures that are in the release: nobody learns more from what is said than from it."""
    generator = np.random.default_rng(0)
    values = np.abs(generator.standard_normal((4000, 4))).astype(np.float32)
    source = small.write_rows(tmp_path / "in", small.embeddings_table(["cat", "devices"] * 2000, values))
    files = release(source, tmp_path, "--classes", "cat,devises", *keyed(tmp_path))
    out, err = capfd.readouterr()
    table = pq.read_table(pa.BufferReader(files["mixture/classes.parquet"])).to_pydict()
    (stddev,) = set(table["rows_stddev"])
    assert table["class"] == ["cat", "devises"]
    # Six deviations: 2e-9 by chance, were the key drawn; it is not.
    assert np.abs(np.subtract(table["rows"], [2000, 0])).max() < 6 * stddev
    assert 10 < stddev < 100
    first, *lines = out.splitlines()[-3:]
    assert first.endswith(f"class that it was made from, with noise of standard deviation {stddev:.3g}:")
    sizes = zip(table["rows"], table["class"], strict=True)
    assert lines == [f"  {rows:>9,}  {name}" for rows, name in sizes]
    assert err.splitlines()[-1].startswith("warning: 1 of 2 classes is no more than noise")
    assert ": devises. Are these labels spelt as in the data?" in err
    (path,) = (tmp_path / "private" / "reports").iterdir()
    assert f"What was left out of the input, and why, is in {path}\n" in out
    assert "devices" not in out + err


def test_class_sizes_that_cannot_be_read_back(rows, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(class_sizes.ClassRows, "load", lambda read: read("gone.parquet"))
    release(rows, tmp_path)
    out, err = capfd.readouterr()
    assert out.startswith("released to")
    assert "mixture/classes.parquet of the release could not be read back" in err


def test_an_empty_class_and_a_class_of_one_row(rows, tmp_path):
    clean = pq.read_table(rows)
    one = small.embeddings_table(["lonely"], np.ones((1, 16)))
    source = small.write_rows(tmp_path / "in", pa.concat_tables([clean, one]))
    files = release(source, tmp_path, "--classes", "a,b,c,lonely,nobody")
    (name,) = (name for name in files if name.startswith("synthetic/"))
    table = pq.read_table(pa.BufferReader(files[name]))
    classes = ["a", "b", "c", "lonely", "nobody"]
    drawn_in = table["component_class"].to_pylist()
    assert {label: drawn_in.count(label) for label in drawn_in} == dict.fromkeys(classes, 20)
    assert set(table["label"].to_pylist()) <= set(classes)
    vectors = np.array(table["embedding"].to_pylist())
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_unlabelled_rows_are_one_class(rows, tmp_path, capsys):
    table = pq.read_table(rows).drop_columns(["label"])
    source = small.write_rows(tmp_path / "in", table)
    assert "--classes=a,b,c is refused: it must be one class" in refused(arguments(source, tmp_path), capsys)
    files = release(source, tmp_path, "--classes", "everything")
    assert not json.loads(files["manifest.json"])["config"]["labelled"]


def test_without_a_teacher_nothing_is_spent_on_labels(tmp_path, capsys):
    source = small.write_rows(tmp_path / "in", small.table(600))
    files = release(source, tmp_path, "--no-teacher", "--epsilon", "20", *keyed(tmp_path))
    stated = json.loads(files["manifest.json"])
    assert stated["config"]["method"]["teacher_steps"] == 0
    shares = {each["name"]: each["share"] for each in stated["privacy"]["mechanisms"]}
    assert "teacher/gradient" not in shares
    assert sum(shares.values()) == pytest.approx(1)
    # Labels are there all the same, and better than chance.
    released = load_release(tmp_path / "out" / "release")
    drawn = released.sample(300, seed=0)
    assert (drawn.labels == drawn.component_class).mean() > 0.5
    again = ["--input", str(source), "--noise-key-file", str(tmp_path / "key")]
    folder = ["verify", "--release", str(tmp_path / "out" / "release")]
    assert cli.main([*folder, *again, "--private-dir", str(tmp_path / "verify")]) == 0


def test_a_key_of_its_own_is_gone_at_the_end(rows, tmp_path, capfd, monkeypatch):
    drawn = []
    token_bytes = os.urandom(32)
    monkeypatch.setattr("secrets.token_bytes", lambda count: drawn.append(count) or token_bytes[:count])
    files = release(rows, tmp_path)
    assert drawn.count(32) == 1
    kept = small.contents(tmp_path / "private")
    assert [name.split("/")[0] for name in kept] == ["reports"]
    assert token_bytes not in b"".join(kept.values())
    assert os.listdir(tmp_path / "private" / "runs") == []
    assert os.stat(tmp_path / "private").st_mode & 0o777 == 0o700
    out, err = capfd.readouterr()
    for text in (token_bytes, token_bytes.hex().encode(), repr(token_bytes).encode()):
        assert text not in pickle.dumps(files)
        assert text not in (out + err).encode()


def test_a_key_of_its_own_outlives_a_failure_and_not_the_release(rows, tmp_path, capfd, monkeypatch):
    """The failed run is continued: another draw would spend another budget."""

    def fail(*_):
        raise OSError("no space")

    with monkeypatch.context() as broken:
        broken.setattr(Publication, "publish", fail)
        assert cli.main(arguments(rows, tmp_path)) == 1
    assert len(list((tmp_path / "private").glob("runs/*/noise.key"))) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("dpgmm: the job failed and published nothing half-done: ")
    release(rows, tmp_path)
    assert "continuing the run that was interrupted" in capfd.readouterr().err
    assert os.listdir(tmp_path / "private" / "runs") == []


def test_a_key_of_its_own_is_gone_after_a_refusal(tmp_path, capsys):
    """Of a worker, which is the first to see all files."""
    pq.write_table(small.table(50), tmp_path / "1.parquet")
    pq.write_table(small.table(50, dimension=8), tmp_path / "2.parquet")
    sentence = refused(arguments(tmp_path / "*.parquet", tmp_path), capsys)
    assert "--input=" in sentence
    assert not list((tmp_path / "private").rglob("noise.key"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("images") / "in"
    for number, label in enumerate("abc"):
        (folder / label).mkdir(parents=True)
        for i in range(12):
            pixels = np.random.default_rng(100 * number + i).integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


def test_images_bad_images_and_the_embed_cache_give_one_release(images, tmp_path, capfd):
    encoder = ["--encoder", "efficientnet_lite0:32"]
    expected = release(images, tmp_path, *keyed(tmp_path), *encoder)
    said = capfd.readouterr().err
    cache = tmp_path / "cache"
    assert cli.main(["embed", "--input", str(images), *encoder, "--output", str(cache)]) == 0
    (tmp_path / "2").mkdir()
    assert release(cache, tmp_path / "2", *keyed(tmp_path), *encoder) == expected
    for name, data in {"a/empty.png": b"", "b/broken.jpg": b"\xff\xd8no", "zebra/0.png": b"x"}.items():
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).write_bytes(data)
    capfd.readouterr()
    assert release(images, tmp_path / "2", *keyed(tmp_path), *encoder, "--overwrite") == expected
    (path,) = (tmp_path / "2" / "private" / "reports").iterdir()
    left_out = json.loads(path.read_bytes())["images"]["rejected"]
    reasons = {os.path.basename(each["source"]): each["reason"] for each in left_out["named"]}
    assert reasons == {"empty.png": "empty", "broken.jpg": "not a picture", "0.png": "not a picture"}
    err = capfd.readouterr().err
    assert "fit: 100%" in said
    for word in ("empty.png", "broken", "zebra", "reject"):
        assert word not in err


def test_nothing_is_released_like_one_image(tmp_path, capfd):
    """An empty folder and one with an image: the same files, the same words."""
    said = []
    for count in (0, 1):
        folder = tmp_path / str(count)
        (folder / "in" / "a").mkdir(parents=True)
        if count:
            Image.new("RGB", (8, 8), (200, 30, 60)).save(folder / "in" / "a" / "1.png")
        argv = arguments(folder / "in", folder, "--encoder", "blocks", *keyed(folder))
        assert cli.main(argv) == 0
        said.append(
            [
                re.sub(r" +-?\d+(?=  )", "", without_times(text.replace(str(folder), "")))
                for text in capfd.readouterr()
            ]
        )
        files = small.contents(folder / "out" / "release")
        assert len(files) > 3
        assert {name: len(data) for name, data in files.items() if name.startswith("synthetic")}
        assert report(folder)["rows"] == count
    assert said[0] == said[1]


def test_an_empty_folder_of_embeddings(tmp_path):
    (tmp_path / "in").mkdir()
    assert release(tmp_path / "in", tmp_path, "--dimension", "16", *keyed(tmp_path))
    assert counts(report(tmp_path)) == {"rows": 0, "set_aside": {"length": 0, "label": 0, "value": 0}}
