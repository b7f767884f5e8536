"""The options of `dpgmm decode`."""

from pipelines.arguments import Parser
from pipelines.folders import default_folder

FORMATS, LABELS = ("png", "parquet", "webdataset"), ("teacher", "drawn")


def parser() -> Parser:
    result = Parser(
        prog="dpgmm decode",
        description="Draws labelled embeddings from the mixture of a release and makes a picture of each. The"
        " data is not looked at again: this costs nothing in privacy. Run again, it goes on where it was"
        " interrupted.",
        examples=(
            "dpgmm decode --release release --decoder torch:decoder.pt --output pictures",
            "dpgmm decode --release release --output pictures --images-per-class 20 \\\n"
            "      --decoder kandinsky22:kandinsky-community/kandinsky-2-2-decoder",
        ),
        beam=True,
    )
    result.add_argument("--release", required=True, help="folder of the release")
    result.add_argument(
        "--decoder",
        required=True,
        help="private_linear of a decodable release; dct:SIDE, torch:FILE, retrieval:GALLERY, kandinsky22:"
        "MODEL or unclip:MODEL of the release's encoder (docs/decoders.md)",
    )
    result.add_argument("--output", required=True, help="new folder of pictures; appears whole or not at all")
    result.add_argument(
        "--images-per-class", type=int, default=100, help="drawn in the mixture of each class"
    )
    result.add_argument(
        "--format", choices=FORMATS, default="png", help="images/LABEL/*.png, or files of many pictures"
    )
    result.add_argument(
        "--labels",
        choices=LABELS,
        default="teacher",
        help="by the release's teacher, or the class in which an embedding was drawn",
    )
    result.add_argument(
        "--label-release", help="another release, of an encoder whose teacher looks at the pictures"
    )
    result.add_argument("--seed", type=int, default=0, help="public; the same seed gives the same pictures")
    result.add_argument(
        "--encoder", help="that the embeddings are of, where the release says 'precomputed' or names a path"
    )
    result.add_argument("--private-dir", help=f"from which no gallery may come (default: {default_folder()})")
    result.add_argument("--threads", type=int, default=0, help="of one process; 0: as many as cores")
    return result
