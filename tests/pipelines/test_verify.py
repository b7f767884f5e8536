import json
import shutil

import pyarrow.parquet as pq
import pytest

from pipelines import cli
from tests import small


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    source = small.write_rows(folder / "in", small.table(200))
    key = small.write_key(folder / "key")
    small.run(source, folder / "release", key)
    return folder, source, key


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made[0] / "release", tmp_path / "release")


def verify(release, *more):
    return cli.main(["verify", "--release", str(release), *map(str, more)])


def test_a_release_holds(copy, capsys):
    assert verify(copy) == 0
    out = capsys.readouterr().out
    assert out.startswith("verified: what was done to the data composes to epsilon 2 at delta 1e-05")
    assert "add or remove one" in out


def test_a_changed_file(copy, capsys):
    path = copy / "mixture" / "basis.parquet"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    assert verify(copy) == 1
    assert capsys.readouterr().out == (
        "NOT VERIFIED: mixture/basis.parquet does not have the digest that the manifest states\n"
    )
    path.unlink()
    assert verify(copy) == 1
    assert "mixture/basis.parquet is missing or cannot be read" in capsys.readouterr().out


def epsilon(content):
    content["privacy"]["epsilon"] = content["config"]["epsilon"] = 0.5


def classes(content):
    content["config"]["classes"] = ["a", "b", "x"]


def multiplier(content):
    content["privacy"]["mechanisms"][0]["noise_multiplier"] *= 2


def no_event(content):
    del content["privacy"]["dp_event"]


@pytest.mark.parametrize("change", [epsilon, classes, multiplier, no_event])
def test_a_changed_manifest(copy, capsys, change):
    content = json.loads((copy / "manifest.json").read_text())
    change(content)
    (copy / "manifest.json").write_text(json.dumps(content))
    assert verify(copy) == 1
    assert capsys.readouterr().out.startswith("NOT VERIFIED: ")


def test_no_manifest_or_another_file(copy, capsys):
    (copy / "manifest.json").write_text("[]")
    assert verify(copy) == 2
    (copy / "manifest.json").unlink()
    assert verify(copy) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" is refused")[0] for line in lines] == [f"dpgmm: --release={copy}"] * 2


def derive(made, copy, tmp_path, source=None, key=None):
    _, rows, right = made
    more = ["--input", source or rows, "--noise-key-file", key or right, "--private-dir", tmp_path / "p"]
    return verify(copy, *more)


def test_derived_again(made, copy, tmp_path, capsys):
    assert derive(made, copy, tmp_path) == 0
    assert "derived again, everything is the same" in capsys.readouterr().out


def test_states_of_the_release_prove_nothing(tmp_path, capsys):
    """A wrong one of its run, in the private folder that is given, changes nothing."""
    source, key = small.write_rows(tmp_path / "in", small.table(200)), small.write_key(tmp_path / "key")
    private = tmp_path / "p"
    small.run(source, tmp_path / "release", key, private_dir=private)
    small.run(source, tmp_path / "other", key, private_dir=tmp_path / "q", release_id="other")
    states, others = (sorted(folder.glob("runs/*/*/state-*.npz")) for folder in (private, tmp_path / "q"))
    assert len(states) == len(others) == 13
    shutil.copy(others[-1], states[-1])
    # The register would not have it.
    shutil.rmtree(private / "register")
    # It is believed by the run that it belongs to.
    wrong = small.run(source, tmp_path / "wrong", key, private_dir=private)
    assert wrong["mixture/components.parquet"] != small.in_memory(source)["mixture/components.parquet"]
    made = tmp_path, source, key
    assert derive(made, tmp_path / "release", tmp_path) == 0
    assert "derived again, everything is the same" in capsys.readouterr().out
    assert derive(made, tmp_path / "wrong", tmp_path) == 1
    assert "comes out different when derived again" in capsys.readouterr().out
    assert not list(private.glob("verify-*"))


def test_nothing_is_left_of_what_was_derived(made, copy, tmp_path):
    assert derive(made, copy, tmp_path) == 0
    assert {path.name for path in (tmp_path / "p").iterdir()} == {"rows"}
    assert (tmp_path / "p").stat().st_mode & 0o777 == 0o700


def test_another_key_or_other_data_derive_something_else(made, copy, tmp_path, capsys):
    assert derive(made, copy, tmp_path, key=small.write_key(tmp_path / "other", small.OTHER_KEY)) == 1
    assert "comes out different when derived again" in capsys.readouterr().out
    less = small.write_rows(tmp_path / "less", pq.read_table(made[1]).slice(1))
    assert derive(made, copy, tmp_path, source=less) == 1
    assert capsys.readouterr().out.count("NOT VERIFIED") == 7


def test_a_file_that_the_manifest_leaves_out(made, copy, tmp_path, capsys):
    content = json.loads((copy / "manifest.json").read_text())
    content["files"] = content["files"][1:]
    (copy / "manifest.json").write_text(json.dumps(content))
    assert verify(copy) == 1
    assert capsys.readouterr().out == "NOT VERIFIED: README.md is not in the manifest\n"


def test_files_that_are_not_of_the_release(copy, capsys):
    """`train` would read one; 15 rows became 765 so."""
    shutil.copy(copy / "mixture" / "basis.parquet", copy / "synthetic" / "part-zzz.parquet")
    (copy / "notes.txt").write_text("mine")
    assert verify(copy) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"NOT VERIFIED: {name} is there and not of the release"
        for name in ("notes.txt", "synthetic/part-zzz.parquet")
    ]


@pytest.mark.parametrize("name", ["adjacency", "privacy_unit", "neighboring_relation", "mechanisms"])
def test_another_statement_is_found_without_the_data(copy, capsys, name):
    content = json.loads((copy / "manifest.json").read_text())
    content["privacy"][name] = "\x1b[2Jreplace one"
    (copy / "manifest.json").write_text(json.dumps(content))
    assert verify(copy) == 1
    said = capsys.readouterr().out
    assert (
        said == f"NOT VERIFIED: {name} of the privacy statement is not what follows from the configuration\n"
    )


def test_refusals(made, copy, tmp_path, capsys):
    assert verify(copy, "--input", made[1]) == 2
    assert "come together with --noise-key-file" in capsys.readouterr().err
    assert derive(made, copy, tmp_path, key=small.write_key(tmp_path / "short", b"x")) == 2
    assert "hold exactly 32 bytes" in capsys.readouterr().err
