import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import cli, embed, inspection
from tests import small
from tests.dpgmm_beam.data.test_images import encode, photo
from tests.transforms import crate

ENCODER = "efficientnet_lite0:32"


@pytest.fixture
def folder(tmp_path):
    """A folder as people have them."""
    root = tmp_path / "images"
    for label in ("cat", "Dog", "fish "):
        (root / label / "2023").mkdir(parents=True)
        for i in range(4):
            (root / label / "2023" / f"{i}.jpg").write_bytes(encode(photo((30 + i, 20)), "JPEG"))
    data = encode(photo(), "PNG")
    (root / "cat" / "cut.png").write_bytes(data[: len(data) // 2])
    (root / "cat" / "empty.png").write_bytes(b"")
    (root / "cat" / "long.png").write_bytes(encode(Image.new("L", (1, 2**12))))
    (root / "cat" / "text.gif").write_bytes(b"text")
    (root / "cat" / "lost.webp").symlink_to("nowhere")
    (root / "cat" / "notes.docx").write_bytes(b"notes")
    deep = (np.arange(900).reshape(30, 30)).astype(np.uint16)
    (root / "cat" / "deep.png").write_bytes(encode(Image.fromarray(deep)))
    return root


def inspect(capsys, *arguments):
    """Status, text, and facts of the verb."""
    assert cli.main(["inspect", *map(str, arguments)]) == 0
    text = capsys.readouterr().out
    assert cli.main(["inspect", *map(str, arguments), "--json"]) == 0
    return text, json.loads(capsys.readouterr().out)


def test_what_a_folder_holds(folder, tmp_path, capsys):
    before = small.contents(tmp_path)
    text, facts = inspect(capsys, "--input", folder, "--classes", "cat,dog,fish,bird", "--decode")
    assert text.startswith("FOR THE OWNER'S EYES")
    found = facts["found"]
    assert (found["rows"], found["good_rows"]) == (18, 13)
    assert found["formats"] == {"JPEG": 12, "PNG": 1}
    assert found["smallest"] == [30, 20]
    reasons = {os.path.basename(each["source"]): each["reason"] for each in found["rejected"]["named"]}
    assert reasons == {
        "cut.png": "cut",
        "empty.png": "empty",
        "long.png": "too long",
        "text.gif": "not a picture",
        "lost.webp": "no regular file",
    }
    assert [os.path.basename(each["source"]) for each in found["passed_over"]["named"]] == ["notes.docx"]
    assert [os.path.basename(each["source"]) for each in found["notes"]["named"]] == ["deep.png"]
    labels = facts["labels"]
    assert labels["classes"] == {"cat": 5, "dog": 0, "fish": 0, "bird": 0}
    assert labels["classes_without_rows"] == ["dog", "fish", "bird"]
    assert labels["labels_not_declared"]["rows"] == {"Dog": 4, "fish ": 4}
    near = [(each["label"], each["declared"], each["difference"]) for each in labels["near_matches"]]
    assert near == [("Dog", "dog", "case"), ("fish ", "fish", "blanks at the ends")]
    for said in (*reasons.values(), "'fish ' may be meant to be 'fish': blanks at the ends", "bird"):
        assert said in text
    assert small.contents(tmp_path) == before


def test_headers_alone_tell_less_and_say_so(folder, capsys):
    text, facts = inspect(capsys, "--input", folder)
    assert "headers only" in text
    assert facts["found"]["good_rows"] == 14
    assert facts["found"]["labels"]["rows"] == {"cat": 6, "Dog": 4, "fish ": 4}
    assert "labels" not in facts
    assert facts["dimension"] is None


def test_what_it_would_take(folder, capsys):
    text, facts = inspect(capsys, "--input", folder, "--encoder", ENCODER, "--classes", "cat")
    assert facts["dimension"] == 1280
    assert facts["release"]["rows"] == 6
    assert facts["release"]["disk"] == 6 * (16 + 4 * 1280 + 4 * 1280)
    assert facts["images_a_second"] > 0
    assert "docs/scale.md" in text


def test_inspect_and_embed_agree(folder, tmp_path, capsys):
    """And the report is private and exact."""
    embed.main(["--input", str(folder), "--encoder", ENCODER, "--output", str(tmp_path / "out")])
    assert str(tmp_path / "out" / "_reports" / "embed.json") in capsys.readouterr().out
    report = tmp_path / "out" / "_reports" / "embed.json"
    assert report.stat().st_mode & 0o777 == 0o600
    written = json.loads(report.read_text())
    found = inspect(capsys, "--input", folder, "--decode")[1]["found"]
    for key in ("rejected", "passed_over", "notes"):
        assert written[key]["counts"] == found[key]["counts"]
        ours, theirs = (sorted(map(str, each[key]["named"])) for each in (written, found))
        assert ours == theirs
    assert written["good_rows"] == found["good_rows"] == 13
    assert written["labels"] == found["labels"]
    # Mended or taken away, what was wrong is no longer said.
    for name in ("cut.png", "empty.png", "long.png", "text.gif", "lost.webp", "deep.png"):
        (folder / "cat" / name).unlink()
    embed.main(["--input", str(folder), "--encoder", ENCODER, "--output", str(tmp_path / "out")])
    assert json.loads(report.read_text())["rejected"] == {"counts": {}, "named": []}
    assert not [*(tmp_path / "out" / "_rejected").iterdir(), *(tmp_path / "out" / "_notes").iterdir()]


@pytest.mark.parametrize("encoder", [[], ["--encoder", "precomputed"]])
def test_embeddings(tmp_path, capsys, encoder):
    values = [[1.0, 2.0]] * 6 + [[0.0, 0.0], [float("nan"), 1.0], None]
    table = {
        "label": pa.array(["a", "a", "b", "b ", None, "c", "a", "a", "a"]),
        "embedding": pa.array(values, pa.list_(pa.float32(), 2)),
    }
    pq.write_table(pa.table(table), tmp_path / "in.parquet")
    text, facts = inspect(
        capsys, "--input", tmp_path / "in.parquet", *encoder, "--classes", "a,b,d", "--decode"
    )
    assert (facts["found"]["rows"], facts["found"]["good_rows"]) == (9, 6)
    assert facts["found"]["rejected"]["counts"] == {
        "not finite, zero or huge": 2,
        "null, or of another length": 1,
    }
    labels = facts["labels"]
    assert labels["classes"] == {"a": 5, "b": 1, "d": 0}
    assert labels["labels_not_declared"] == {"rows": {"b ": 1, "c": 1}, "null": 1, "other_labels": 0}
    assert facts["release"]["rows"] == 6
    assert "'b ' may be meant to be 'b'" in text
    assert "WITHOUT A ROW: 'd'. " in text
    plain, facts = inspect(capsys, "--input", tmp_path / "in.parquet", *encoder)
    assert facts["found"]["good_rows"] == 9
    assert "labels only" in plain


def test_images_in_parquet(tmp_path, capsys):
    data = [encode(photo(), "WEBP"), None, b"", b"text", encode(photo())[:400]]
    pq.write_table(pa.table({"image": data, "label": ["a", "a", "b", "b", "b"]}), tmp_path / "in.parquet")
    _, facts = inspect(capsys, "--input", tmp_path / "in.parquet", "--decode")
    assert facts["found"]["rejected"]["counts"] == {"missing": 1, "empty": 1, "not a picture": 1, "cut": 1}
    assert facts["found"]["labels"]["rows"] == {"a": 1}


def test_another_file_system(folder, capsys):
    near = inspect(capsys, "--input", folder, "--decode")[1]["found"]
    assert crate.plain("crate:///a") == "/a"
    (folder / "cat" / "lost.webp").unlink()
    far = inspect(capsys, "--input", f"crate://{folder}", "--decode")[1]["found"]
    for key in ("good_rows", "formats", "labels", "smallest", "largest"):
        assert far[key] == near[key]
    assert far["rejected"]["counts"] == {
        key: count for key, count in near["rejected"]["counts"].items() if key != "no regular file"
    }


def test_names_that_could_steer_a_terminal(tmp_path, capsys):
    (tmp_path / "in" / "a\x1b[31m").mkdir(parents=True)
    (tmp_path / "in" / "a\x1b[31m" / "b\n.png").write_bytes(b"text")
    text, _ = inspect(capsys, "--input", tmp_path / "in", "--classes", "b")
    assert "\x1b" not in text
    assert "b\\n.png" in text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--input", "/nowhere"], "--input=/nowhere is refused"),
        (["--input", ".", "--threads", "-1"], "--threads=-1 is refused"),
        (["--input", ".", "--names", "-1"], "--names=-1 is refused"),
        (["--input", ".", "--encoder", "no"], "--encoder=no is refused"),
        (["--input", ".", "--classes", "a,a"], "--classes="),
    ],
)
def test_refusals(options, sentence, capsys):
    assert cli.main(["inspect", *options]) == 2
    assert sentence in capsys.readouterr().err


def test_pythons_own_inspect_is_not_in_its_shadow():
    """Whoever runs a file of the folder has the folder first on the path."""
    program = os.path.join(small.REPOSITORY, "pipelines", "inspection.py")
    environment = {**os.environ, "PYTHONPATH": str(small.REPOSITORY)}
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert not os.path.exists(os.path.join(small.REPOSITORY, "pipelines", "inspect.py"))


def test_sizes_and_times_in_words():
    assert [inspection._bytes(size) for size in (999, 1500, 2.5e9, 7e13)] == [
        "999 B",
        "1.5 KB",
        "2.5 GB",
        "70 TB",
    ]
    assert [inspection._seconds(each) for each in (5, 600, 36000)] == ["5 s", "10 min", "10.0 h"]
