"""The options of `dpgmm embed`."""

from pipelines.arguments import Parser
from pipelines.columns import IMAGE, LABEL, UNIT, add_columns


def parser() -> Parser:
    result = Parser(
        prog="dpgmm embed",
        description="Embeds labelled images into a PRIVATE folder of Parquet files. Run again, it embeds"
        " only what is new.",
        examples=("dpgmm embed --input photos/ --output private/embeddings",),
        beam=True,
    )
    result.add_argument(
        "--input",
        required=True,
        help="folder of LABEL/*.png|jpg|..., .csv or .jsonl list, tars, or Parquet with a column 'image'",
    )
    result.add_argument(
        "--encoder",
        default="efficientnet_lite0",
        help="efficientnet_lite0[:SIZE], open_clip:MODEL/PRETRAINED-or-path, scattering:SIDE or dct:SIDE",
    )
    result.add_argument("--output", required=True, help="folder for the embeddings; keep it private")
    result.add_argument("--threads", type=int, default=0, help="of one process; 0: as many as cores")
    result.add_argument("--shard-rows", type=int, default=1024, help="images of one output file, at most")
    result.add_argument(
        "--batch-size", type=int, default=0, help="images per run of the network; 0 suits the hardware"
    )
    result.add_argument(
        "--decodable",
        metavar="SIDE",
        help="keep the images, too, SIDE pixels wide (28, or 28:rgb in colour), for release --decodable",
    )
    add_columns(result, IMAGE, LABEL, UNIT)
    return result
