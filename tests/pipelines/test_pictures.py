"""Pictures that people can see, from files of all formats to embeddings, by the real encoder."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import embed
from tests.dpgmm_beam.data.test_images import JPEG_SIDES, PNG_SIDES, encode

FORMATS = {
    "png": ("PNG", {}),
    "jpg": ("JPEG", {"quality": 95}),
    "webp": ("WEBP", {"lossless": True}),
    "bmp": ("BMP", {}),
    "gif": ("GIF", {}),
    "tiff": ("TIFF", {"compression": "tiff_lzw"}),
    "avif": ("AVIF", {"quality": 95}),
}
EXACT = ("png", "webp", "bmp", "gif", "tiff")


def picture(number):
    """Of 24 colours, so that a GIF can have them all."""
    small = np.random.default_rng(number).integers(0, 256, (4, 6, 3), np.uint8)
    return Image.fromarray(small).resize((72, 64), Image.Resampling.NEAREST)


def embedded(folder, output):
    """name below the folder -> (label, embedding); and the report."""
    arguments = ["--input", str(folder), "--encoder", "efficientnet_lite0:64", "--output", str(output)]
    assert embed.main(arguments) == 0
    rows = [row for path in output.glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    found = {
        row["source"][len(str(folder)) + 1 :]: (row["label"], np.array(row["embedding"])) for row in rows
    }
    return found, json.loads((output / "_reports" / "embed.json").read_text())


def cosine(one, other):
    return one @ other / np.linalg.norm(one) / np.linalg.norm(other)


@pytest.mark.parametrize("suffixes", ["their own", "wrong ones"])
def test_a_messy_folder_of_42_images_in_7_formats(tmp_path, suffixes):
    """Two levels deep; three pictures of two labels in each format, and names that say what they like."""
    for number in range(6):
        for place, (suffix, (kind, options)) in enumerate(FORMATS.items()):
            folder = tmp_path / "in" / "ab"[number % 2] / f"2023-{number}" / suffix
            folder.mkdir(parents=True)
            named = suffix.upper() if number == 3 else suffix
            if suffixes == "wrong ones":
                named = list(FORMATS)[(place + 1) % len(FORMATS)]
            (folder / f"x.{named}").write_bytes(encode(picture(number), kind, **options))
    found, report = embedded(tmp_path / "in", tmp_path / "out")
    assert len(found) == report["good_rows"] == 42
    assert report["labels"]["rows"] == {"a": 21, "b": 21}
    assert not report["rejected"]["counts"]
    plain = {name.split("/")[1]: row[1] for name, row in found.items() if "/png/" in name}
    for name, (label, embedding) in found.items():
        _, number, suffix, _ = name.split("/")
        assert label == "ab"[int(number[-1]) % 2]
        assert np.argmax([cosine(embedding, each) for each in plain.values()]) == [*plain].index(number)
        assert suffix not in EXACT or np.array_equal(embedding, plain[number])


def test_the_same_picture_with_whatever_stands_beside_it(tmp_path):
    """One embedding, bit for bit, of files of one format."""
    (tmp_path / "in" / "png").mkdir(parents=True)
    (tmp_path / "in" / "jpg").mkdir()
    png, jpeg = encode(picture(0)), encode(picture(0), "JPEG")
    for number, side in enumerate([b"", *PNG_SIDES.values()]):
        (tmp_path / "in" / "png" / f"{number}.png").write_bytes(png[:33] + side + png[33:])
    for number, side in enumerate([b"", *JPEG_SIDES.values()]):
        (tmp_path / "in" / "jpg" / f"{number}.jpg").write_bytes(
            jpeg[:2] + side + jpeg[2 : -2 if number % 2 else None]
        )
    found, report = embedded(tmp_path / "in", tmp_path / "out")
    assert len(found) == len(PNG_SIDES) + len(JPEG_SIDES) + 2
    assert not report["rejected"]["counts"]
    for label in ("png", "jpg"):
        of_label = [embedding for own, embedding in found.values() if own == label]
        assert all(np.array_equal(each, of_label[0]) for each in of_label)


def test_a_photograph_of_108_megapixels(tmp_path):
    """As current phones take it; its embedding is that of the small one."""
    (tmp_path / "in" / "a").mkdir(parents=True)
    large = picture(1).resize((12_000, 9_000), Image.Resampling.NEAREST)
    large.save(tmp_path / "in" / "a" / "large.jpg", quality=80)
    large.reduce(8).save(tmp_path / "in" / "a" / "small.jpg", quality=95)
    found, _ = embedded(tmp_path / "in", tmp_path / "out")
    assert cosine(found["a/large.jpg"][1], found["a/small.jpg"][1]) > 0.99


def test_pictures_are_seen_as_people_see_them(tmp_path):
    """Turned, on white, and as deep as they are: the embedding of the plain picture."""
    (tmp_path / "in" / "a").mkdir(parents=True)
    plain = picture(2)
    exif = Image.Exif()
    exif[0x0112] = 8
    turned = plain.transpose(Image.Transpose.ROTATE_270)
    gray = np.asarray(plain.convert("L"))
    icon = Image.new("RGBA", (72, 64), (0, 0, 0, 0))
    icon.paste(plain.crop((10, 10, 50, 50)), (10, 10))
    shown = Image.new("RGB", (72, 64), "white")
    shown.paste(plain.crop((10, 10, 50, 50)), (10, 10))
    pairs = {
        "turned": (encode(turned, exif=exif), encode(plain)),
        "icon": (encode(icon), encode(shown)),
        "deep": (encode(Image.fromarray(gray.astype(np.uint16) << 4)), encode(Image.fromarray(gray))),
        "first": (encode(plain, save_all=True, append_images=[turned.resize(plain.size)]), encode(plain)),
    }
    for name, (odd, same) in pairs.items():
        (tmp_path / "in" / "a" / f"{name}-odd.png").write_bytes(odd)
        (tmp_path / "in" / "a" / f"{name}-plain.png").write_bytes(same)
    found, report = embedded(tmp_path / "in", tmp_path / "out")
    for name in pairs:
        assert np.array_equal(found[f"a/{name}-odd.png"][1], found[f"a/{name}-plain.png"][1]), name
    assert list(report["notes"]["counts"].values()) == [1]
