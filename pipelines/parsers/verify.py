"""The options of `dpgmm verify`."""

from pipelines.arguments import Parser
from pipelines.folders import default_folder


def parser() -> Parser:
    result = Parser(
        prog="dpgmm verify",
        description="Checks that a release's privacy event composes to its epsilon and that its files have"
        " their digests; with --input and --noise-key-file derives it again and compares every file."
        " Exits 0 when all holds and 1 when not.",
        examples=(
            "dpgmm verify --release release",
            "dpgmm verify --release release --input private/embeddings --noise-key-file noise.key",
        ),
        beam=True,
    )
    result.add_argument("--release", required=True, help="folder of the release")
    result.add_argument("--input", help="the data it was made from")
    result.add_argument("--noise-key-file", help="the key that it was made with")
    result.add_argument("--private-dir", help=f"embed cache (default: {default_folder()})")
    return result
