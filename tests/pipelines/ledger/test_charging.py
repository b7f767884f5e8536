"""Releases that a ledger charges: by the command, killed at the worst moments, refused, made again."""

import json
import os
import signal

import pyarrow.parquet as pq
import pytest

from pipelines import cli
from pipelines.ledger.book import Book
from tests import small
from tests.pipelines.processes import PATIENCE
from tests.pipelines.test_interruptions import command, ended, left, release, said

KINDS = ["created", "reserved", "drawing", "committed"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return small.write_rows(tmp_path_factory.mktemp("rows") / "in", small.table())


@pytest.fixture
def ledger(tmp_path):
    path = str(tmp_path / "ledger.sqlite")
    Book(path, "photos").create(1.4, 1e-5)
    return path


def charged(rows, folder, ledger, *more):
    return [*release(rows, folder), "--ledger", ledger, "--dataset", "photos", *more]


def keyed(folder, release_id="r1"):
    return ["--noise-key-file", small.write_key(folder / "key"), "--release-id", release_id]


def kinds(ledger):
    return [row["kind"] for row in Book(ledger, "photos").history()]


def run(arguments, *changed):
    return cli.main([str(each) for each in (*arguments, *changed)])


@pytest.fixture(scope="module")
def uncharged(rows, tmp_path_factory):
    """The files of the release r1 without a ledger."""
    folder = tmp_path_factory.mktemp("uncharged")
    assert run([*release(rows, folder), *keyed(folder)]) == 0
    return small.contents(folder / "out" / "release")


MOMENTS = [
    # Reserved, and no job submitted.
    "rename to witness-",
    # Before any noise: rows are prepared, and the gate is about to be passed.
    "rename to piece-",
    "link to gate-",
    # Noise was drawn; the release is about to appear.
    "link to state-003",
    "rename to release beside",
]


@pytest.mark.parametrize("stop_at", MOMENTS)
def test_killed_and_run_again_it_is_the_same_release_and_one_charge(
    rows, tmp_path, ledger, uncharged, stop_at
):
    arguments = charged(rows, tmp_path, ledger, *keyed(tmp_path))
    with command(arguments, tmp_path, stop_at) as started:
        os.kill(started.pid, signal.SIGKILL)
    assert kinds(ledger) == KINDS[: 2 if stop_at == MOMENTS[0] else 3]
    log = ended(arguments, tmp_path)
    assert kinds(ledger) == KINDS
    assert small.contents(tmp_path / "out" / "release") == uncharged
    assert "charged to photos: epsilon 1 of 1.4" in log
    assert Book(ledger, "photos").problems() == []


def test_a_killed_run_with_a_drawn_key_is_continued_at_one_charge(rows, tmp_path, ledger):
    arguments = charged(rows, tmp_path, ledger)
    with command(arguments, tmp_path, "link to state-002") as started:
        os.kill(started.pid, signal.SIGKILL)
    # No other release fits beside it: the same command knows its own.
    assert "continuing the run" in ended(arguments, tmp_path)
    assert kinds(ledger) == KINDS


@pytest.mark.parametrize(
    ("stop_at", "kind"), [("rename to piece-", "returned"), ("link to state-002", "abandoned")]
)
def test_a_signal_gives_back_what_drew_nothing(rows, tmp_path, ledger, stop_at, kind):
    arguments = charged(rows, tmp_path, ledger)
    with command(arguments, tmp_path, stop_at) as started:
        os.kill(started.pid, signal.SIGTERM)
        os.kill(started.pid, signal.SIGCONT)
        assert started.wait(PATIENCE) == 143
    assert left(tmp_path / "private") == []
    assert kinds(ledger) == [*KINDS[:3], kind]
    sentence = "nothing was drawn" if kind == "returned" else "noise may have been drawn"
    assert sentence in said(tmp_path)
    # The key is gone: another draw, for which there is a budget or not.
    log = ended(arguments, tmp_path, status=0 if kind == "returned" else 3)
    assert kind == "returned" or "be at most 0.9" in log


def test_overspending_is_refused_before_the_data_is_looked_at(rows, tmp_path, ledger, capsys):
    assert run(charged(rows, tmp_path, ledger, *keyed(tmp_path))) == 0
    capsys.readouterr()
    more = release(tmp_path / "nowhere", tmp_path)
    other = [*more, "--ledger", ledger, "--dataset", "photos", *keyed(tmp_path, "r2"), "--json"]
    assert run(other, "--output", tmp_path / "o2") == 3
    out, err = capsys.readouterr()
    assert err.startswith("dpgmm: --epsilon=1.0 is refused: it must be at most 0.9")
    assert err.count("\n") == 1
    assert json.loads(out)["exit_status"] == 3
    assert kinds(ledger) == KINDS
    # What is left may be spent, to the last digit that was said.
    most = err.split("at most ")[1].split()[0]
    other = charged(rows, tmp_path, ledger, *keyed(tmp_path, "r2"))
    assert run(other, "--output", tmp_path / "o2", "--epsilon", most) == 0
    account = Book(ledger, "photos").account()
    assert account.spent_epsilon() == pytest.approx(1.4, rel=1e-4)


def test_the_same_release_again_costs_nothing_and_anything_else_is_refused(
    rows, tmp_path, ledger, uncharged, capsys
):
    arguments = charged(rows, tmp_path, ledger, *keyed(tmp_path))
    assert run(arguments) == 0
    # In another private folder, into another place: the register there knows nothing.
    elsewhere = ["--private-dir", tmp_path / "p2", "--output"]
    assert run(arguments, *elsewhere, tmp_path / "again") == 0
    assert small.contents(tmp_path / "again") == uncharged
    capsys.readouterr()
    assert run(arguments, *elsewhere, tmp_path / "o", "--epsilon", "0.5") == 2
    assert "names a release of another configuration" in capsys.readouterr().err
    table = pq.read_table(rows / "rows-0.parquet")
    small.write_rows(tmp_path / "other", table.slice(1))
    assert run(arguments, *elsewhere, tmp_path / "o", "--input", tmp_path / "other") == 2
    assert (
        "--release-id=r1 is refused: it must be new: it names a release of other data"
        in capsys.readouterr().err
    )
    other_key = small.write_key(tmp_path / "other-key", small.OTHER_KEY)
    assert run(arguments, *elsewhere, tmp_path / "o", "--noise-key-file", other_key) == 2
    assert "another noise key" in capsys.readouterr().err
    assert kinds(ledger) == KINDS
    assert not (tmp_path / "o").exists()
    assert not list((tmp_path / "p2").glob("runs/*/*/state-001.npz"))[1:]


def test_equal_data_of_two_releases_does_not_show_in_the_ledger(rows, tmp_path, ledger):
    for number in (1, 2):
        arguments = charged(rows, tmp_path, ledger, *keyed(tmp_path, f"r{number}"))
        assert run(arguments, "--epsilon", "0.3", "--output", tmp_path / f"o{number}") == 0
    first, second = Book(ledger, "photos").account().charges.values()
    assert first.data
    assert first.facts["fit_digest"] == second.facts["fit_digest"]
    assert first.facts["key"] != second.facts["key"]
    assert first.data != second.data
    assert first.state_digest != second.state_digest


def test_a_job_that_is_refused_before_it_draws_is_given_back(rows, tmp_path, ledger, capsys, monkeypatch):
    from transforms import prepare

    class Full:
        free = 0

    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda _: Full)
    for more in ([], keyed(tmp_path)):
        assert run(charged(rows, tmp_path, ledger, *more)) == 2
        assert "nothing was drawn, and photos was not charged" in capsys.readouterr().err
    monkeypatch.undo()
    assert run(charged(rows, tmp_path, ledger, *keyed(tmp_path))) == 0
    assert kinds(ledger) == [*(["created"]), *(["reserved", "drawing", "returned"] * 2), *KINDS[1:]]


def test_what_a_crash_left_can_be_given_back_by_hand(rows, tmp_path, ledger, capsys):
    arguments = charged(rows, tmp_path, ledger, *keyed(tmp_path))
    with command(arguments, tmp_path, "rename to piece-") as started:
        os.kill(started.pid, signal.SIGKILL)
    give_back = [
        "ledger",
        "return",
        "--ledger",
        ledger,
        "--dataset",
        "photos",
        "--release-id",
        "r1",
        "--private-dir",
    ]
    (tmp_path / "p2").mkdir(mode=0o700)
    assert run(give_back, tmp_path / "p2") == 2
    assert "be the folder in which the release was begun" in capsys.readouterr().err
    assert run(give_back, tmp_path / "private") == 0
    assert Book(ledger, "photos").account().spent_epsilon() == 0
    # It may be made after all, at its price.
    assert run(arguments) == 0
    capsys.readouterr()
    assert run(give_back, tmp_path / "private") == 2
    assert "of a job that drew nothing, and noise may have been drawn" in capsys.readouterr().err
    assert kinds(ledger) == [*KINDS[:3], "returned", *KINDS[1:]]


def test_a_backup_that_was_restored_is_noticed(rows, tmp_path, ledger, capsys):
    backup = open(ledger, "rb").read()  # noqa: SIM115
    assert run(charged(rows, tmp_path, ledger)) == 0
    with open(ledger, "wb") as file:
        file.write(backup)
    capsys.readouterr()
    assert run(charged(rows, tmp_path, ledger), "--output", tmp_path / "o") == 2
    assert "the ledger was restored from an older state" in capsys.readouterr().err
    assert kinds(ledger) == ["created"]


def test_a_ledger_that_fails_at_the_end_does_not_undo_the_release(
    rows, tmp_path, ledger, capsys, monkeypatch
):
    def gone(*_):
        raise OSError("the network is down")

    monkeypatch.setattr(Book, "commit", gone)
    arguments = charged(rows, tmp_path, ledger, *keyed(tmp_path))
    assert run(arguments) == 0
    assert "the release stands and is charged, but the ledger could not be told" in capsys.readouterr().err
    assert kinds(ledger) == KINDS[:3]
    monkeypatch.undo()
    assert run(arguments) == 0
    assert kinds(ledger) == KINDS


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--dataset", "photos"], "--dataset=photos is refused: it must come together with --ledger"),
        (
            [
                *("--ledger", "sqlite:///l.db", "--dataset", "d"),
                *("--privacy-unit-column", "who", "--max-rows-per-unit", "auto"),
            ],
            "--max-rows-per-unit=auto is refused: it must be a number with --ledger",
        ),
        (
            ["--ledger", "postgresql://u:secret@h/d"],
            "--ledger=(given) is refused: it must come together with --dataset",
        ),
        (
            ["--release-key-store", "keys"],
            "--release-key-store=keys is refused: it must come together with --release-id",
        ),
    ],
)
def test_options_that_belong_together(rows, tmp_path, options, sentence, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(release(rows, tmp_path), *options) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"dpgmm: {sentence}")
    assert "secret" not in err
    assert not list(tmp_path.iterdir())


def test_a_key_of_a_store_makes_the_release_again_and_is_nowhere_else(rows, tmp_path, capsys):
    stored = ["--release-key-store", tmp_path / "keys", "--release-id", "r1"]
    assert run(release(rows, tmp_path), *stored) == 0
    (key,) = (tmp_path / "keys").glob("*.key")
    secret = key.read_bytes()
    made = small.contents(tmp_path / "out" / "release")
    assert not any(secret in data for data in small.contents(tmp_path / "private").values())
    again = ["--private-dir", tmp_path / "p2", "--output", tmp_path / "again"]
    assert run(release(rows, tmp_path), *stored, *again) == 0
    assert small.contents(tmp_path / "again") == made
    # It is a key file like any other.
    verify = ["verify", "--release", tmp_path / "again", "--input", rows, "--noise-key-file", key]
    assert run(verify, "--private-dir", tmp_path / "p3") == 0
    forget = ["ledger", "forget-key", "--release-key-store", tmp_path / "keys", "--release-id", "r1"]
    assert run(forget) == 0
    capsys.readouterr()
    assert run(release(rows, tmp_path), *stored, *again, "--overwrite") == 2
    assert "the key of its release was destroyed" in capsys.readouterr().err
    assert small.contents(tmp_path / "again") == made


def test_a_destroyed_key_is_in_the_history(tmp_path, ledger, capsys):
    forget = ["ledger", "forget-key", "--release-key-store", tmp_path / "keys", "--release-id", "r1"]
    assert run(forget, "--ledger", ledger, "--dataset", "pohtos") == 2
    assert not (tmp_path / "keys").exists()
    assert run(forget, "--ledger", ledger, "--dataset", "photos") == 0
    assert kinds(ledger) == ["created", "key forgotten"]


def test_a_killed_driver_leaves_no_key_of_a_store_after_the_next_one(rows, tmp_path):
    arguments = [*release(rows, tmp_path), "--release-key-store", tmp_path / "keys", "--release-id", "r1"]
    with command(arguments, tmp_path, "link to state-002") as started:
        os.kill(started.pid, signal.SIGKILL)
    assert list(tmp_path.glob("private/runs/*/noise.key"))
    ended(arguments, tmp_path)
    assert not list(tmp_path.glob("private/runs/*/noise.key"))


def test_a_run_that_began_without_a_ledger_has_drawn(rows, tmp_path, ledger, uncharged):
    """What it drew is charged when it goes on with one, and not given back."""
    plain = [*release(rows, tmp_path), *keyed(tmp_path)]
    with command(plain, tmp_path, "link to state-003") as started:
        os.kill(started.pid, signal.SIGKILL)
    arguments = charged(rows, tmp_path, ledger, *keyed(tmp_path))
    with command(arguments, tmp_path, "link to state-005") as started:
        os.kill(started.pid, signal.SIGTERM)
        os.kill(started.pid, signal.SIGCONT)
        assert started.wait(PATIENCE) == 143
    assert kinds(ledger) == KINDS[:3]
    ended(arguments, tmp_path)
    assert kinds(ledger) == KINDS
    assert Book(ledger, "photos").account().named("r1").data
    assert small.contents(tmp_path / "out" / "release") == uncharged
