import os
import signal
from pathlib import Path

from pipelines import cli, runs
from tests import small
from tests.pipelines.processes import exit_code


def release(folder, source, *more):
    return [
        *["release", "--input", str(source), "--encoder", "precomputed", "--classes", "a"],
        *["--epsilon", "1", "--delta", "1e-5", "--samples-per-class", "20"],
        *["--output", str(folder / "out"), "--private-dir", str(folder / "private"), *more],
    ]


def clean(folder, capsys):
    capsys.readouterr()
    assert cli.main(["clean", "--private-dir", str(folder / "private")]) == 0
    out, err = capsys.readouterr()
    assert not err
    return out


def test_what_a_release_left(tmp_path, capsys):
    source = small.write_rows(tmp_path / "in", small.table(200))
    key = small.write_key(tmp_path / "key")
    assert cli.main(release(tmp_path, source, "--noise-key-file", key, "--release-id", "r1")) == 0
    cache = tmp_path / "private" / "embeddings"
    cache.mkdir()
    (cache / "shard-0.parquet").write_bytes(b"embeddings")
    before, released = small.contents(tmp_path / "private"), small.contents(tmp_path / "out")
    assert any("state-002.npz" in name for name in before)
    assert any("piece-00000.npy" in name for name in before)
    assert clean(tmp_path, capsys) == "removed 1 runs, and prepared rows\n"
    left = small.contents(tmp_path / "private")
    assert {name.split("/")[0] for name in left} == {"embeddings", "register", "reports"}
    assert left.items() <= before.items()
    assert (tmp_path / "key").read_bytes() == small.KEY
    assert small.contents(tmp_path / "out") == released
    # The same release is made again, from the beginning.
    again = release(tmp_path, source, "--noise-key-file", key, "--release-id", "r1", "--overwrite")
    assert cli.main(again) == 0
    assert small.contents(tmp_path / "out") == released
    assert "removed 1 runs" in clean(tmp_path, capsys)
    assert clean(tmp_path, capsys) == "removed 0 runs\n"


def killed_in_a_run(private, source, output):
    with runs.open_run(private, small.small_config(), source, output, None, None):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_drawn_key_that_was_left_behind(tmp_path, capsys):
    source = small.write_rows(tmp_path / "in", small.table(200))
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o755)
    ended = exit_code(killed_in_a_run, str(tmp_path / "private"), str(source), str(tmp_path / "out"))
    assert ended == -signal.SIGKILL
    assert len(list(Path(tmp_path).rglob("noise.key"))) == 1
    assert clean(tmp_path, capsys) == "removed 1 runs\n"
    assert not list(Path(tmp_path).rglob("noise.key"))


def test_runs_of_living_drivers_stay(tmp_path, capsys):
    with runs.open_run(str(tmp_path / "private"), small.small_config(), "/in", "/out", None, None) as run:
        said = clean(tmp_path, capsys)
        assert said == f"removed 0 runs\nleft 1 that are running: {run.name}\n"
        assert os.path.exists(run.workspace.key_file)
    assert clean(tmp_path, capsys) == "removed 0 runs\n"


def test_a_folder_elsewhere_is_refused(capsys):
    assert cli.main(["clean", "--private-dir", "gs://bucket/private"]) == 2
    assert capsys.readouterr().err == (
        "dpgmm: --private-dir=gs://bucket/private is refused: it must be a local folder; elsewhere delete"
        " its runs/ and rows/.\n"
    )


def test_an_unknown_option_is_refused(capsys):
    try:
        status = cli.main(["clean", "--output", "x"])
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert "--output" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_not_called_clean(tmp_path, capsys):
    assert cli.main(["clean", "--private-dir", str(tmp_path / "none")]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err == f"dpgmm: --private-dir={tmp_path / 'none'} is refused: it must be a folder that exists.\n"
