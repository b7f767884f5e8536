"""The options of `dpgmm train-decoder`."""

from dpgmm_beam.recipe import DECODER_SIDES, DecoderConfig
from pipelines.arguments import Parser, add_recipe
from pipelines.columns import IMAGE, LABEL, add_columns
from pipelines.folders import default_folder

RECIPE = {
    "side": f"pixels of a side of its pictures, one of {', '.join(map(str, DECODER_SIDES))}",
    "steps": "batches that it is trained on",
    "batch_size": "pictures of a batch",
    "learning_rate": "of Adam at the start; it falls to 0 along a half cosine",
    "noise": "added to embeddings of length 1, at most: synthetic ones are not quite like real ones",
    "seed": "of the first weights, of the order of pictures and of the noise",
}


def parser() -> Parser:
    result = Parser(
        prog="dpgmm train-decoder",
        description="Trains a small decoder of an encoder's embeddings on PUBLIC images, for dpgmm decode."
        " What it has seen comes out in its pictures, and no budget covers that: private images have no"
        " place here.",
        examples=(
            "dpgmm train-decoder --public-images public/ --encoder efficientnet_lite0 --output decoder.pt",
        ),
    )
    result.add_argument(
        "--public-images",
        required=True,
        help="folder of images, .csv or .jsonl list, tars or Parquet, of images that anybody may see",
    )
    result.add_argument("--encoder", required=True, help="of the release whose embeddings are to be decoded")
    result.add_argument("--output", required=True, help="file of the decoder")
    result.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    result.add_argument("--max-images", type=int, default=50_000, help="used, where there are more")
    result.add_argument("--private-dir", help=f"from which none may come (default: {default_folder()})")
    result.add_argument("--threads", type=int, default=0, help="that embed; 0: as many as cores")
    add_columns(result, IMAGE, LABEL)
    add_recipe(result, DecoderConfig, RECIPE)
    return result
