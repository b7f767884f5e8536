import grpc
import pytest

from dpgmm_beam import __version__
from dpgmm_beam.errors import ConfigError
from pipelines import cli


def test_help_and_version(capsys):
    assert cli.main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert not err
    assert all(f"\n  {verb}" in out for verb in cli.VERBS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"dpgmm {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["relaese"], ["release2", "--help"], ["--verison"], ["release", "x"][1:]]
)
def test_an_unknown_verb(arguments, capsys):
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("usage: dpgmm VERB [options]")


def test_no_verb(capsys):
    assert cli.main([]) == 2
    assert capsys.readouterr().out.startswith("usage: dpgmm VERB")


@pytest.mark.parametrize("verb", cli.VERBS)
def test_each_verb_has_its_help(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    assert ended.value.code == 0
    assert f"usage: dpgmm {verb} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "dpgmm verify: the following arguments are required: --release\n"),
        (["--release"], "dpgmm verify: argument --release: expected one argument\n"),
    ],
)
def test_a_parser_complains_in_one_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["verify", *arguments])
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", sentence)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--epsilom", "1"], "--epsilom=1 is refused: it must be an option of this verb or of Apache Beam."),
        (["--release-i=x"], "--release-i=x= is refused"),
        (["stray"], "stray= is refused"),
        # An abbreviation of Beam's --runner.
        (["--runne", "DirectRunner"], "--runne=DirectRunner is refused"),
        (["--direct_num_workers", "two"], "--direct_num_workers=two is refused: it must be as Apache Beam"),
        (["--direct_num_workers=two"], "--direct_num_workers=two is refused: it must be as Apache Beam"),
        (
            ["--dry_run"],
            "--dry_run= is refused: it must be as Apache Beam takes it (expected one argument)",
        ),
        (["--dry_run", "--project=p"], "--dry_run= is refused: it must be as Apache Beam takes it"),
    ],
)
def test_options_that_nobody_knows(arguments, sentence, tmp_path, capsys):
    assert cli.main(["verify", "--release", str(tmp_path), *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert err.startswith(f"dpgmm: {sentence}")


def test_options_of_beam():
    options = cli.beam_pipeline_options(["--direct_num_workers", "3", "--job_name=x"]).get_all_options()
    assert (options["direct_num_workers"], options["job_name"]) == (3, "x")


def raising(error):
    def main(_):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ConfigError("--delta", 2, "be below 1"), 2, "dpgmm: --delta=2 is refused: it must be below 1.\n"),
        (KeyboardInterrupt(), 130, "dpgmm: interrupted; nothing half-done was published\n"),
        (
            OSError("no space"),
            1,
            "dpgmm: the job failed and published nothing half-done: OSError: no space"
            " (--verbose shows more)\n",
        ),
    ],
    ids=repr,
)
def test_what_goes_wrong_is_one_sentence(error, status, said, capsys):
    assert cli.run(raising(error), []) == status
    assert capsys.readouterr() == ("", said)


def test_verbose_shows_the_traceback():
    with pytest.raises(OSError, match="no space"):
        cli.run(raising(OSError("no space")), ["--verbose"])


class Broken(grpc.RpcError, grpc.Call):
    """As gRPC's own, whose text ends in a line with a bracket."""

    def __str__(self):
        return '<Broken of RPC that terminated with:\n\tdetails = "Socket closed"\n>'

    def details(self):
        return "Socket closed"

    code = initial_metadata = trailing_metadata = add_callback = cancel = is_active = time_remaining = None


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            RuntimeError(
                "Traceback (most recent call last):\n  File x\nValueError: deep [while running 'A']\n"
            ),
            "RuntimeError: ValueError: deep",
        ),
        (
            RuntimeError("job failed: worker disconnected\n\ngoroutine 1\n\tgo.go:7"),
            "RuntimeError: job failed: ",
        ),
        (Broken(), "Broken: Socket closed"),
        (ValueError(), "ValueError: "),
        (ValueError("x" * 9000), "ValueError: xxx"),
    ],
    ids=["a worker's traceback", "Prism", "gRPC", "nothing", "much"],
)
def test_the_line_that_says_what_went_wrong(error, line):
    summary = cli.summary(error)
    assert summary.startswith(line)
    assert "\n" not in summary
    assert "while running" not in summary
    assert len(summary) < 600
