"""The options of `dpgmm predict`."""

from dpgmm_beam.data.schema import LABEL, PROBABILITIES
from pipelines.arguments import Parser


def parser() -> Parser:
    result = Parser(
        prog="dpgmm predict",
        description="Writes what a network that dpgmm train made says of embeddings, row by row and in"
        f" their order: '{LABEL}', the likeliest class, and '{PROBABILITIES}', in the order of the classes."
        " Rows that no class can be told of, such as nulls, have nulls. The output is as private as the"
        " input: only its owner may read it.",
        examples=(
            "dpgmm predict --network network --input private/embeddings --output private/predicted.parquet",
            "dpgmm predict --network network --input rows.parquet --output predicted.csv",
        ),
    )
    result.add_argument("--network", required=True, help="folder of a training, or its model.pt")
    result.add_argument(
        "--input", required=True, help="embeddings in Parquet or arrays, by file, folder or glob"
    )
    result.add_argument("--output", required=True, help="a file: .parquet, or .csv with a column a class")
    result.add_argument("--overwrite", action="store_true", help="replace a file that is in --output")
    result.add_argument("--dimension", type=int, help="length of an embedding in a list column")
    return result
