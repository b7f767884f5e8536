"""dpgmm ledger, by its command line."""

import json

import pytest

from benchmarks.ledger import wanted
from pipelines import cli
from pipelines.ledger.book import Book
from tests import small


@pytest.fixture
def at(tmp_path):
    """What names a data set on the command line."""
    return ["--ledger", str(tmp_path / "ledger.sqlite"), "--dataset", "photos"]


def ledger(action, *more):
    return cli.main(["ledger", action, *map(str, more)])


@pytest.fixture
def spent(at, capsys):
    """One release of four that fit is published, and one reserved."""
    assert ledger("create", *at, "--epsilon", 4, "--delta", 1e-6) == 0
    book = Book(at[1], "photos")
    charge = book.reserve(wanted("2026-01", 4))
    book.begin_drawing(charge)
    book.commit(charge, "data", "state")
    book.reserve(wanted("2026-02", 4))
    capsys.readouterr()
    return at


def test_show(spent, capsys):
    assert ledger("show", *spent) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "photos: epsilon 2.718 of 4 at delta 1e-06 is spent or reserved"
    assert lines[2:4] == [
        "  releases: 1 committed, 1 reserved",
        "  left: one release of the whole of up to epsilon 2.71763 at delta 1e-06",
    ]
    assert lines[4] == "  2 more like the last one (2026-02: epsilon 1 at delta 1e-06) fit"
    assert ledger("show", *spent, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["dataset"], found["more_like_last"], found["closed"]) == ("photos", 2, False)
    assert [each["state"] for each in found["releases"]] == ["committed", "reserved"]
    assert found["left_epsilon"] < 4 - found["spent_epsilon"] + 2


def test_history_and_verify(spent, capsys, tmp_path):
    assert ledger("history", *spent, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["history"]
    assert [row["kind"] for row in rows] == ["created", "reserved", "drawing", "committed", "reserved"]
    assert all({"time", "by", "hash", "previous", "number"} <= row.keys() for row in rows)
    assert ledger("history", *spent) == 0
    said = capsys.readouterr().out
    assert "reserved       2026-01 epsilon 1.0 at delta 1e-06" in said
    seen = ["--witness", tmp_path / "seen"]
    assert ledger("verify", *spent, *seen, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verified"], found["rows"], found["signatures_checked"]) == (True, 5, False)
    (tmp_path / "ledger.sqlite").unlink()
    assert ledger("create", *spent, "--epsilon", 4, "--delta", 1e-6) == 0
    capsys.readouterr()
    assert ledger("verify", *spent, *seen) == 1
    assert "NOT VERIFIED: its row 4 is not the one that" in capsys.readouterr().out


def test_close_and_set_total(spent, capsys):
    assert ledger("set-total", *spent, "--epsilon", 2, "--delta", 1e-6) == 2
    assert "--epsilon=2.0 is refused: it must be at least 2.717638" in capsys.readouterr().err
    least = "2.717638"
    assert ledger("set-total", *spent, "--epsilon", least, "--delta", 1e-6) == 0
    assert ledger("close", *spent) == 0
    capsys.readouterr()
    assert ledger("show", *spent) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("is spent or reserved, and it is closed")


def test_signed(at, tmp_path, capsys):
    key = ["--ledger-key-file", small.write_key(tmp_path / "key")]
    assert ledger("create", *at, *key, "--epsilon", 4, "--delta", 1e-6) == 0
    assert ledger("verify", *at) == 0
    assert "signatures are checked with --ledger-key-file only" in capsys.readouterr().err
    assert ledger("verify", *at, *key, "--json") == 0
    assert json.loads(capsys.readouterr().out)["signatures_checked"]
    assert ledger("close", *at) == 2
    assert "--ledger-key-file=(not given) is refused" in capsys.readouterr().err
    (tmp_path / "key").chmod(0o644)
    assert ledger("verify", *at, *key) == 2
    assert "--ledger-key-file=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["show"], "--ledger=(not given)"),
        (["show", "--ledger", "l"], "--dataset=(not given)"),
        (["create", "--ledger", "l", "--dataset", "d"], "--epsilon=(not given)"),
        (["create", "--ledger", "l", "--dataset", "d", "--epsilon", "1"], "--delta=(not given)"),
        (["return", "--ledger", "l", "--dataset", "d"], "--release-id=(not given)"),
        (["forget-key", "--release-id", "r"], "--release-key-store=(not given)"),
        (["show", "--ledger", "l", "--dataset", "d"], "--ledger="),
        (["show", "--ledger", "l", "--dataset", "d", "--epsilon", "3"], "--epsilon=3.0"),
        (["create", "--ledger", "l", "--dataset", "d", "--release-id", "r"], "--release-id=r"),
        (["forget-key", "--release-id", "r", "--private-dir", "p"], "--private-dir=p"),
        (["show", "--ledger", "\udcff", "--dataset", "d"], "--ledger="),
        (["show", "--ledger", "a\0", "--dataset", "d"], "--ledger="),
        (["show", "--ledger", "l", "--dataset", "\udcff"], "--dataset="),
        (["forget-key", "--release-id", "\udcff", "--release-key-store", "k"], "--release-id="),
        (["show", "--ledger", "l", "--dataset", "d", "--witness", ""], "--witness="),
    ],
)
def test_what_is_missing_is_named(arguments, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["ledger", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"dpgmm: {named}")
    assert list(tmp_path.iterdir()) == []
