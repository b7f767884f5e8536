import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from dpgmm_beam import __version__
from dpgmm_beam.errors import ConfigError
from pipelines import cli
from pipelines.arguments import parser_of

REPOSITORY = Path(__file__).parents[2]
WHAT = ["--input=a", "--encoder=precomputed", "--classes=a,b", "--output=o", "--epsilon=1", "--delta=1e-6"]


def test_help_and_version(capsys):
    assert cli.main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert not err
    assert all(f"\n  {verb}" in out for verb in cli.VERBS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"dpgmm {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["relaese"], "dpgmm: there is no verb 'relaese'; did you mean 'release'?"),
        (["release2", "--help"], "dpgmm: there is no verb 'release2'; did you mean 'release'?"),
        (["--verison"], "dpgmm: there is no verb '--verison'; did you mean '--version'?"),
        (["x"], "dpgmm: there is no verb 'x'"),
    ],
)
def test_an_unknown_verb(arguments, said, capsys):
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"{said}\nusage: dpgmm VERB [options]")


@pytest.mark.parametrize(
    ("arguments", "status"), [(["--help"], 0), (["--version"], 0), (["relaese"], 2), ([], 2)]
)
def test_the_command_answers_without_what_takes_long_to_import(arguments, status):
    """Run as a module, too, it does something."""
    loaded = (
        "import runpy, sys\n"
        "sys.argv = ['dpgmm', *sys.argv[1:]]\n"
        "try:\n"
        "    runpy.run_module('pipelines.cli', run_name='__main__')\n"
        "finally:\n"
        "    print(*(name for name in ('apache_beam', 'grpc', 'torch', 'numpy', 'scipy', 'pyarrow')\n"
        "            if name in sys.modules))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", loaded, *arguments], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert ran.returncode == status
    *said, found = ran.stdout.splitlines()
    assert not found
    assert said or ran.stderr


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
        (["--release-i=x"], "--release-i=x is refused"),
        (["--epsilom", "--project=p"], "--epsilom= is refused"),
        (["stray"], "command line=stray is refused: it must be an option of this verb or of Apache Beam."),
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


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["verify", "--release=x", "--realease=y"], "--release"),
        (["verify", "--release=x", "--flink-master=y"], "--flink_master"),
        (["verify", "--release=x", "--runer=y"], "--runner"),
        (["release", *WHAT, "--epsilom=1"], "--epsilon"),
        (["release", *WHAT, "--noise_key_file=1"], "--noise-key-file"),
        (["release", *WHAT, "--object_reus"], "--object_reuse"),
        (["train", "--synthetic=a", "--test=b", "--output=c", "--epoch=3"], "--epochs"),
        (["sample", "--release=a", "--rows=3", "--output=c", "--sed=3"], "--seed"),
    ],
)
def test_mistyped_options_are_told_the_nearest(arguments, near, capsys):
    runner = ["--runner=FlinkRunner"] if "--object_reus" in arguments else []
    assert cli.main([*arguments, *runner]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.endswith(f"such as {near}.\n")


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_says_what_a_user_needs(verb, capsys):
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    said = capsys.readouterr().out
    assert f"examples:\n  {'eval' if verb == 'completion' else f'dpgmm {verb}'}" in said
    assert "None" not in said
    # One default each, and none in the place of another.
    assert not re.search(r"\(default: [^)]*\)\s+\(default", said)
    assert ("All other options go to Apache Beam" in said) == (
        verb in ("embed", "release", "decode", "verify", "demo")
    )
    for action in parser_of(verb)._actions:
        assert action.help or action.choices, action.dest


@pytest.mark.parametrize("verb", cli.VERBS)
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_what_a_parser_answers_takes_no_beam(verb, option):
    loaded = (
        "import sys\nfrom pipelines import cli\n"
        "try:\n    cli.main(sys.argv[1:])\n"
        "finally:\n"
        "    slow = {'apache_beam', 'numpy', 'torch', 'pyarrow', 'scipy', 'yaml', 'sqlalchemy', 'hvac'}\n"
        "    print(*(slow & {*sys.modules}), file=sys.stderr)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", loaded, verb, option], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert (ran.returncode, ran.stderr) == (0, "\n")
    assert ran.stdout


def test_json_of_a_refusal(capsys):
    assert cli.main(["verify", "--release", "/no", "--json"]) == 2
    out, err = capsys.readouterr()
    sentence = "--release=/no is refused: it must be a folder with a manifest.json."
    assert json.loads(out) == {"verb": "verify", "exit_status": 2, "error": sentence, "said": []}
    assert err == f"dpgmm: {sentence}\n"


def test_json_of_what_a_parser_does_not_take(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--json"])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["error"] == err.rstrip()
    assert out.count("\n") == 1


def test_json_of_a_failed_job(capsys):
    assert cli.run(raising(OSError("no space")), ["--json"]) == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["exit_status"], found["said"]) == (1, [])
    assert err == f"dpgmm: {found['error']}\n"


def test_json_of_a_result(capsys):
    def main(_):
        cli.say("a line")
        cli.report("three rows are in x", rows=3, output="x\n")
        cli.note("a remark")
        return 0

    assert cli.run(main, ["--json"], None) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "verb": None,
        "exit_status": 0,
        "said": ["a line", "three rows are in x"],
        "rows": 3,
        "output": "x\n",
    }
    assert err == "a remark\n"


def test_quiet_leaves_warnings_and_errors(capsys):
    def main(_):
        cli.note("a remark")
        cli.warn("look")
        logging.getLogger("dpgmm.x").info("own")
        logging.getLogger("dpgmm.x").warning("own warning")
        cli.say("result")
        return 0

    assert cli.run(main, ["--quiet"]) == 0
    assert capsys.readouterr() == ("result\n", "warning: look\nown warning\n")
    cli.note("a remark")
    assert capsys.readouterr().err == "a remark\n"


def test_flags_of_a_file_count_as_if_they_were_typed(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("json: true\nquiet: yes\nrelease: /no\n")
    assert cli.main(["verify", "--config", str(tmp_path / "c.yaml")]) == 2
    assert json.loads(capsys.readouterr().out)["verb"] == "verify"


def test_help_that_nobody_reads_to_its_end():
    for arguments in (["--help"], ["release", "--help"], ["completion", "bash"]):
        reading, writing = os.pipe()
        os.close(reading)
        ran = subprocess.run(
            [sys.executable, "-m", "pipelines.cli", *arguments],
            stdout=writing,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
        )
        os.close(writing)
        assert (ran.returncode, ran.stderr) == (0, b"")


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


TRACEBACK = """Traceback (most recent call last):
  File "worker.py", line 3, in process
dpgmm_beam.errors.ConfigError: --dimension=3 is refused: it must be 4. [while running 'Release/Rows']

During handling of the above exception, another exception occurred:
RuntimeError: it failed
"""


@pytest.mark.parametrize("arguments", [[], ["--verbose"]])
def test_what_a_worker_refuses_is_refused(arguments, capsys):
    assert cli.run(raising(RuntimeError(TRACEBACK)), arguments) == 2
    assert capsys.readouterr() == ("", "dpgmm: --dimension=3 is refused: it must be 4.\n")


def test_what_a_message_only_mentions_is_no_refusal():
    assert cli.refusal(RuntimeError("ConfigError: x is refused: it must go")) == ""
    assert cli.refusal(RuntimeError("dpgmm_beam.errors.ConfigError: something else")) == ""


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


def test_characters_that_a_stream_cannot_write():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    cli.say("released to /daten/für", stream)
    assert stream.buffer.getvalue() == b"released to /daten/f\\xfcr\n"


def test_what_could_steer_a_terminal_is_escaped():
    """Text of a manifest, say."""
    stream = io.StringIO()
    cli.say("add or remove\n\x1b[2J one \udcff", stream)
    assert stream.getvalue() == "add or remove\\n\\x1b[2J one \\udcff\n"


@pytest.mark.parametrize("verb", ["\x1b[2Jx\n", "\udcff", "x" * 9000])
def test_a_verb_that_could_steer_a_terminal(verb, capsys):
    assert cli.main([verb]) == 2
    said = capsys.readouterr().err.splitlines()[0]
    assert said.isprintable()
    assert len(said) < 300


def test_a_parser_says_what_is_wrong_in_a_line_of_its_own(capsys):
    for argument in ("--\n\x1b[2J=1", "x" * 9000):
        assert cli.main(["train", "--synthetic=a", "--test=b", "--output=c", argument]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.strip().isprintable()
        assert len(err) < 1000


@pytest.mark.parametrize(
    "arguments", [["--help"], ["release", "--help"], ["release"], ["verify", "--release", "/no"]]
)
def test_run_as_a_module_it_is_the_command(arguments, capsys):
    ran = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments], capture_output=True, text=True, cwd=REPOSITORY
    )
    try:
        status = cli.main(arguments)
    except SystemExit as ended:
        status = ended.code
    assert (ran.returncode, ran.stdout, ran.stderr) == (status, *capsys.readouterr())


SAYS = """
import os, sys
from pipelines import cli
from pipelines.arguments import parser_of
def main(arguments):
    if not os.environ["PYTHONUNBUFFERED"]:
        # What is still in the buffer is written, or not, when the program ends.
        print("first", end="")
    cli.say("released", sys.stdout)
    cli.say("said", sys.stderr)
    return 0
sys.exit(cli.run(main, []))
"""


def closed():
    return ["sh", "-c", 'exec "$@" >&- 2>&-', "sh"], {}


def full():
    device = os.open("/dev/full", os.O_WRONLY)
    return [], {"stdout": device, "stderr": device}


def broken():
    reading, writing = os.pipe()
    os.close(reading)
    return [], {"stdout": writing, "stderr": writing}


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("streams", [closed, full, broken])
def test_a_line_that_cannot_be_printed_fails_nothing(streams, unbuffered):
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    before, options = streams()
    ran = subprocess.run([*before, sys.executable, "-c", SAYS], cwd=REPOSITORY, env=environment, **options)
    assert ran.returncode == 0


LOGS = """
import logging, sys, threading
from pipelines import cli
from pipelines.arguments import parser_of
import apache_beam
from apache_beam.options.pipeline_options import PipelineOptions

def fail():
    raise OSError("in a thread")

def main(arguments):
    PipelineOptions([])
    logging.error("job server")
    logging.getLogger("PrismRunner").error("prism")
    logging.getLogger("apache_beam.x").error("beam")
    logging.getLogger("dpgmm.x").info("own")
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    return 0

sys.exit(cli.run(main))
"""


@pytest.mark.parametrize("verbose", [False, True])
def test_what_is_logged(verbose):
    ran = subprocess.run(
        [sys.executable, "-c", LOGS, *(["--verbose"] if verbose else [])],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stdout) == (0, "")
    if verbose:
        for said in ("job server\n", "prism\n", "beam\n", "own\n", "OSError: in a thread\n"):
            assert said in ran.stderr
    else:
        assert ran.stderr == "own\n"


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ("epsilon=0 is refused: it must be", "--epsilon=0 is refused: it must be"),
        ("clip_norm=a=b is refused", "--clip-norm=a=b is refused"),
        ("secret=5 bytes is refused", "--noise-key-file=5 bytes is refused"),
        ("shares=x is refused", "--share=x is refused"),
        ("--input=a_b is refused", "--input=a_b is refused"),
        ("lattice norms=3 is refused", "lattice norms=3 is refused"),
    ],
)
def test_the_library_names_fields_and_the_command_line_options(sentence, said):
    assert cli.with_option(sentence) == said


def test_the_command_ends_when_its_verb_has(tmp_path):
    """Whatever threads of libraries go on; what they do at Python's own end can be a crash."""
    program = """
import atexit, sys, threading, time
from dpgmm_beam import __main__
from pipelines import cli

def verb():
    threading.Thread(target=time.sleep, args=(600,)).start()
    atexit.register(sys.stderr.write, "exit handler")
    sys.stdout.write("said")
    return 7

cli.main = verb
sys.exit(__main__.main())
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "said", "exit handler")
