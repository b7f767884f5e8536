"""The options of `dpgmm sample`."""

from pipelines.arguments import Parser


def parser() -> Parser:
    result = Parser(
        prog="dpgmm sample",
        description="Draws labelled synthetic rows from the mixture of a release. The data is not looked at"
        " again: this costs nothing in privacy, however often and for however many rows. The columns are"
        " those of a release's own rows.",
        examples=("dpgmm sample --release release --rows 1000000 --output more",),
    )
    result.add_argument("--release", required=True, help="folder of the release")
    result.add_argument("--rows", type=int, required=True, help="in all; the classes take turns")
    result.add_argument("--output", required=True, help="new folder of Parquet files")
    result.add_argument("--seed", type=int, help="the same seed gives the same rows (default: drawn)")
    result.add_argument("--threads", type=int, default=0, help="0: as many as cores")
    return result
