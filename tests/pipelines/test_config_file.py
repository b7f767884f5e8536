"""--config, with real files and the verbs' own parsers."""

import argparse
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpgmm_beam.errors import ConfigError
from pipelines import cli, config_file
from pipelines.arguments import parser_of

RELEASE = """
# monthly
input: /data/photos
encoder: efficientnet_lite0
classes: [cat, dog, "010", 010, no]
epsilon: 1
delta: 1e-6
output: /data/release
share: [means/count=.02, means/sum=.1]
overwrite: true
restart: off
samples_per_class: 100
"""


@pytest.fixture
def config(tmp_path):
    def write(text, name="options.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_options_of_a_file(config):
    known = parser_of("release").parse_args(["--config", config(RELEASE)])
    assert (known.epsilon, known.delta, known.samples_per_class) == (1.0, 1e-6, 100)
    # As they stand in the file: labels are no numbers and no truths.
    assert known.classes == "cat,dog,010,010,no"
    assert known.share == ["means/count=.02", "means/sum=.1"]
    assert known.overwrite is True
    assert known.restart is False


def test_the_command_line_wins(config):
    path = config(RELEASE)
    given = ["--epsilon=8", "--share", "teacher/step=.3", "--classes", "a,b", "--samples-per-class=7"]
    for arguments in ([f"--config={path}", *given], [*given, "--config", path]):
        known = parser_of("release").parse_args(arguments)
        assert (known.epsilon, known.share, known.classes) == (8.0, ["teacher/step=.3"], "a,b")
        assert known.samples_per_class == 7


def test_options_of_beam(config):
    text = (
        "release: x\nflink-master: host:8081\nexperiments: [a, b]\n"
        "no_wait_until_finish: true\nobject-reuse: no\n"
    )
    _, rest = parser_of("verify").parse_own_args(["--config", config(text)])
    assert rest == [
        "--flink_master=host:8081",
        "--experiments=a",
        "--experiments=b",
        "--no_wait_until_finish",
    ]


def test_a_value_that_looks_like_an_option(config):
    assert (
        parser_of("sample")
        .parse_args(["--config", config('release: "--rows"\nrows: 3\noutput: "-"\n')])
        .release
        == "--rows"
    )


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n...\n", "{}\n", "\ufeffrows: 3\n"])
def test_files_that_say_little(config, text):
    arguments = ["--rows", "3", "--release=r", "--output=o"]
    assert config_file.expand(parser_of("sample"), [*arguments, "--config", config(text)]) == arguments


NONE = "have options of dpgmm sample as keys"
SHAPE = "be one mapping of options to values, or to lists of values"


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("rows: 3\nrelese: r\n", f"{NONE}, such as release, and relese is none (line 2)"),
        ("zzz: r\n", f"{NONE}, and zzz is none (line 1)"),
        ("runner: FlinkRunner\n", f"{NONE}, and runner is none (line 1)"),
        ("config: x\n", f"{NONE}, and config is none (line 1)"),
        ("help: yes\n", f"{NONE}, and help is none (line 1)"),
        ("'': 1\n", f"{NONE}, and nothing is none (line 1)"),
        ("rows: many\n", "give rows a whole number, not many (line 1)"),
        ("rows: 1.5\n", "give rows a whole number, not 1.5 (line 1)"),
        ("rows: true\n", "give rows a whole number, not true (line 1)"),
        ("rows:\n", "give rows a whole number, not nothing (line 1)"),
        ("rows: [1, 2]\n", "give rows one value, not a list (line 1)"),
        ("release:\n", "give release a value, not nothing (line 1)"),
        ("release: yes\n", "give release a value, not yes, in quotes if it is meant as text (line 1)"),
        ("quiet: 1\n", "give quiet true or false (line 1)"),
        ("quiet: [true]\n", "give quiet true or false (line 1)"),
        ("rows: 1\nrows: 1\n", "name each option once, and rows is there twice (line 2)"),
        ("release: {a: b}\n", f"{SHAPE} (line 1)"),
        ("release: [[a]]\n", f"{SHAPE} (line 1)"),
        ("- release\n", f"{SHAPE} (line 1)"),
        ("release\n", f"{SHAPE} (line 1)"),
        ("? [a]\n: b\n", f"{SHAPE} (line 1)"),
        ("rows: 1\n---\nrows: 2\n", f"{SHAPE} (line 2)"),
        ("a: &a x\nrelease: *a\n", f"{SHAPE} (line 2)"),
        ("<<: {rows: 1}\n", f"{SHAPE} (line 1)"),
        ("rows: 1: 2\n", "be YAML (line 1: mapping values are not allowed in this context)"),
        ("rows: [1\n", "be YAML (line 2: did not find expected ',' or ']')"),
        ("[" * 100_000, f"{SHAPE} (line 1)"),
        (b"rows: \xff\n", "be text in UTF-8"),
        (b"rows: \x00\n", "be YAML"),
        ("#" * 2**21, "be a readable file of at most 1,048,576 bytes (File too large)"),
    ],
)
def test_what_a_file_may_not_hold(config, text, allowed):
    path = config(text)
    with pytest.raises(ConfigError) as refused:
        parser_of("sample").parse_args(["--config", path])
    said = str(refused.value)
    assert said.startswith(f"--config={path} is refused: it must {allowed}")


def test_classes_with_commas(config):
    with pytest.raises(ConfigError, match="have no comma in a value of classes, which a,b has"):
        parser_of("release").parse_own_args(["--config", config("classes: ['a,b', c]\n")])


def test_aliases_do_not_unfold(config):
    """A bomb of a kilobyte."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join(['*' + a] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    with pytest.raises(ConfigError, match=r"--config=.* is refused: it must "):
        parser_of("sample").parse_args(["--config", config("\n".join(lines))])


def test_tags_construct_nothing(config, tmp_path):
    text = f"release: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n"
    with pytest.raises(ConfigError):
        parser_of("sample").parse_args(["--config", config(text)])
    assert not (tmp_path / "made").exists()


@given(st.binary(max_size=200) | st.text("ab-:[]{}&*!,'\"\n #?|>%@`", max_size=60))
def test_whatever_a_file_holds_is_taken_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with contextlib.suppress(ConfigError):
        config_file.expand(parser_of("sample"), ["--config", str(path)])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config", "nowhere.yaml"], "dpgmm: --config=nowhere.yaml is refused: it must be a readable file"),
        (["--config=a", "--config", "b"], "dpgmm: --config=b is refused: it must be given once"),
        (["--config="], "dpgmm: --config='' is refused: it must be a readable file"),
        (["--config", "."], "dpgmm: --config=. is refused: it must be a readable file"),
        (["--config"], "dpgmm sample: argument --config: expected one argument"),
        (["--config", "--quiet"], "dpgmm sample: argument --config: expected one argument"),
    ],
)
def test_files_that_are_none(arguments, said, capsys):
    try:
        status = cli.main(["sample", *arguments])
    except SystemExit as ended:
        status = ended.code
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(said)


def test_every_option_of_every_verb_may_be_in_a_file(config):
    """As help prints its default, or a value that its type takes."""
    for verb in cli.VERBS:
        parser = parser_of(verb)
        lines = []
        for name, action in parser.options().items():
            if name in ("--help", "--version", "--config"):
                continue
            flag = isinstance(action, argparse._StoreTrueAction)
            value = (
                "true" if flag else action.choices[0] if action.choices else "3" if action.type else "text"
            )
            lines.append(f"{name.removeprefix('--')}: {value}")
        said = config_file.expand(parser, ["--config", config("\n".join(lines))])
        assert len(said) == len(lines), verb
