"""The options of `dpgmm completion`."""

from pipelines.arguments import Parser

SHELLS = ("bash", "zsh", "tcsh")


def parser() -> Parser:
    result = Parser(
        prog="dpgmm completion",
        description="Prints a script by which a shell completes verbs, options and file names.",
        examples=(
            'eval "$(dpgmm completion bash)"',
            "dpgmm completion bash > ~/.local/share/bash-completion/completions/dpgmm",
            "dpgmm completion zsh > ~/.zsh/completions/_dpgmm   # a folder of $fpath",
        ),
    )
    result.add_argument("shell", choices=SHELLS)
    return result
