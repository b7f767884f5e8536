"""What a shell is given, and what it then completes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import cli
from pipelines.arguments import parser_of

REPOSITORY = Path(__file__).parents[2]


def script(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_each_verb_and_option_is_in_the_script(shell, capsys):
    said = script(shell, capsys)
    for verb in cli.VERBS:
        assert verb in said
        for name in parser_of(verb).options():
            assert name.removeprefix("--") in said, (verb, name)


def test_a_script_that_a_shell_can_read(capsys):
    for shell in ("bash", "zsh"):
        if shutil.which(shell):
            subprocess.run([shell, "-n"], input=script(shell, capsys), text=True, check=True)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["rel"], {"release"}),
        (["release", "--eps"], {"--epsilon"}),
        (["train", "--labels", "s"], {"soft"}),
        (["completion", "z"], {"zsh"}),
        (["train", "--synthetic", "./REA"], {"./README.md"}),
    ],
)
def test_what_bash_completes(words, offered, capsys):
    """The function that the script declares, called as bash calls it."""
    program = script("bash", capsys) + (
        f"\nCOMP_WORDS=(dpgmm {' '.join(words)})\nCOMP_CWORD={len(words)}\n"
        "declared=$(complete -p dpgmm | sed 's/.*-F \\([^ ]*\\) .*/\\1/')\n"
        '$declared dpgmm "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"\n'
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    ran = subprocess.run(["bash", "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert offered <= set(ran.stdout.split()), ran.stderr


def test_nothing_slow_is_imported():
    loaded = (
        "import sys\nfrom pipelines import cli\ncli.main(['completion', 'bash'])\n"
        "print(*({'apache_beam', 'numpy', 'torch', 'pyarrow', 'scipy'} & {*sys.modules}), file=sys.stderr)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert ran.stderr == "\n"


def test_a_shell_that_nobody_has(capsys):
    with pytest.raises(SystemExit):
        cli.main(["completion", "fish"])
    assert "invalid choice: 'fish'" in capsys.readouterr().err
