"""The bad inputs of `benchmarks/bad_inputs.py`: a table of commands that must all be refused."""

import gzip
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import bad_releases
from benchmarks.bad_ground import (
    DELETE,
    DIMENSION,
    ESCAPES,
    NOT_NUMBERS,
    NOT_WHOLE,
    RAW,
    Case,
    Prepare,
    both,
    damage,
    fifo,
    folder,
    huge,
    idx,
    link,
    manifest,
    manifests,
    of_values,
    owned,
    places,
    replace,
    special,
    vectors,
    write,
)


def cases() -> list[Case]:
    """All of them; names differ."""
    found = [
        *bad_releases.cases(),
        *_embed(),
        *_train(),
        *_tampered_training(),
        *_verify(),
        *_sample(),
        *_demo(),
        *_config(),
    ]
    names = [case.name for case in found]
    assert len(set(names)) == len(names), [name for name in names if names.count(name) > 1]
    return found


def _embed() -> Iterator[Case]:
    yield from of_values("embed", "--threads", (*NOT_WHOLE, -1, 257, 10**6))
    yield from of_values("embed", "--shard-rows", (*NOT_WHOLE, 0, -1, 8193, 10**12))
    yield from of_values("embed", "--batch-size", (*NOT_WHOLE, -1, 4097, 10**12))
    yield from of_values(
        "embed", "--input", ("", "{at}/nowhere", "{at}/key", "bogus://x/y", "{at}/in", "{at}/" + RAW)
    )
    yield from special("embed", "--input")
    yield from places("embed", "--output")
    yield from of_values("embed", "--output", ("{at}/images", "{at}/images/a", "{at}/images/new", "{at}"))
    output, names = ("--output={at}/odd",), ("--output",)
    for mode in (0o755, 0o777, 0o1777, 0o750):
        yield Case("embed", f"output of mode {mode:o}", output, names, folder("odd", mode))
    yield Case("embed", "output of somebody else", output, names, both(folder("odd"), owned("odd")))
    yield Case(
        "embed", "output holds something", output, names, both(folder("odd"), write("odd/thesis", b""))
    )
    yield Case(
        "embed",
        "output holds Parquet",
        output,
        names,
        both(folder("odd"), write("odd/shard-0.parquet", b"")),
    )
    markers: dict[str, Prepare] = {
        "no JSON": write("odd/_dpgmm_embed.json", b"{"),
        "empty": write("odd/_dpgmm_embed.json", b""),
        "bytes": write("odd/_dpgmm_embed.json", b"\xff\xfe"),
        "deep": write("odd/_dpgmm_embed.json", b"[" * 10**4),
        "a list": write("odd/_dpgmm_embed.json", b"[1]"),
        "of another input": write("odd/_dpgmm_embed.json", b'{"input": "/x", "encoder": "y"}'),
        "8 GiB": huge("odd/_dpgmm_embed.json"),
        "a fifo": fifo("odd/_dpgmm_embed.json"),
        "a folder": folder("odd/_dpgmm_embed.json"),
    }
    for title, prepare in markers.items():
        yield Case("embed", f"marker: {title}", output, names, both(folder("odd"), prepare))


def _train() -> Iterator[Case]:
    for option in ("--hidden", "--epochs", "--batch-size"):
        yield from of_values("train", option, (*NOT_WHOLE, 0, -1, 10**6, 10**12, 2**63))
    for option in ("--learning-rate", "--label-temperature"):
        yield from of_values(
            "train", option, (*NOT_NUMBERS, "nan", "inf", "-inf", 0, -1, 1e-300, 1e300, 1e-320)
        )
    yield from of_values("train", "--seed", (*NOT_WHOLE, -1, 2**63, 10**30))
    yield from of_values("train", "--labels", ("", "x", "SOFT", RAW))
    yield from of_values("train", "--clip-norm", ("x", "nan", 0, -1, 1e300, 1))
    yield from of_values("train", "--dimension", ("x", 0, -1, 10**6, 4))
    for option in ("--synthetic", "--test"):
        yield from of_values(
            "train", option, ("", "{at}/nowhere", "{at}/key", "bogus://x/y", "{at}/images", "{at}/" + RAW)
        )
        yield from special("train", option)
    yield from places("train", "--output")
    yield from of_values(
        "train", "--output", ("{at}/release", "{at}/release/x", "{at}/test", "{at}/" + "x" * 240, "{at}")
    )
    output, names = ("--output={at}/odd",), ("--output",)
    yield Case(
        "train", "output is a link to a folder", output, names, both(folder("there"), link("odd", "there"))
    )
    yield Case(
        "train",
        "output holds something",
        (*output, "--overwrite"),
        names,
        both(folder("odd"), write("odd/x", b"")),
    )
    yield Case(
        "train", "output holds a training", output, names, both(folder("odd"), write("odd/model.pt", b""))
    )
    for title, change in {
        "of another length": {"label": ["a"], "embedding": vectors(np.ones((1, 5)))},
        "without labels": {"embedding": vectors(np.ones((1, 4)))},
        "of other labels": {"label": ["z"], "embedding": vectors(np.ones((1, 4)))},
        "that are not finite": {"label": ["a"], "embedding": vectors(np.full((1, 4), np.nan))},
        "of text": {"label": ["a"], "embedding": ["x"]},
    }.items():
        yield Case(
            "train",
            f"test rows {title}",
            (),
            ("--test",),
            lambda at, change=change: pq.write_table(pa.table(change), at / "test" / "0.parquet"),
        )
    yield Case("train", "a test file that is none", (), ("--test",), write("test/0.parquet", b"PAR1 PAR1"))
    yield Case("train", "a fifo among test files", (), ("--test",), fifo("test/z.parquet"))
    yield Case("train", "a damaged test file", (), ("--test",), lambda at: damage(at / "test" / "0.parquet"))


def _synthetic(change: Callable[[pa.Table], pa.Table]) -> Prepare:
    def prepare(at: Path) -> None:
        (path,) = (at / "release" / "synthetic").iterdir()
        pq.write_table(change(pq.read_table(path)), path)

    return prepare


def _set(column: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable[[pa.Table], pa.Table]:
    """Changes the values of a column of vectors."""

    def change(content: pa.Table) -> pa.Table:
        values = np.array(content[column].to_pylist(), np.float32)
        return content.set_column(content.column_names.index(column), column, vectors(make(values)))

    return change


def _put(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def make(values: np.ndarray) -> np.ndarray:
        values[1, 1] = value
        return values

    return make


def _tampered_training() -> Iterator[Case]:
    changes: dict[str, Callable[[pa.Table], pa.Table]] = {}
    for value in (np.nan, np.inf, -np.inf, -0.5, 7.0, 1e30):
        changes[f"a probability {value}"] = _set("label_probabilities", _put(value))
    for value in (np.nan, np.inf, -np.inf, 1e30):
        changes[f"an embedding with {value}"] = _set("embedding", _put(value))
    changes |= {
        "probabilities of nothing": _set("label_probabilities", np.zeros_like),
        "fewer probabilities": _set("label_probabilities", lambda values: values[:, :2]),
        "more probabilities": _set("label_probabilities", lambda values: np.hstack([values, values])),
        "shorter embeddings": _set("embedding", lambda values: values[:, :3]),
        "longer embeddings": _set("embedding", lambda values: np.hstack([values, values])),
        "embeddings of nothing": _set("embedding", np.zeros_like),
        "no labels": lambda content: content.drop_columns(["label"]),
        "no embeddings": lambda content: content.drop_columns(["embedding"]),
        "no rows": lambda content: content.slice(0, 0),
        "other labels": lambda content: content.set_column(0, "label", pa.array(["z"] * len(content))),
        "labels of floats": lambda content: content.set_column(0, "label", pa.array([0.5] * len(content))),
        "a null label": lambda content: content.set_column(
            0, "label", pa.array([None, *["a"] * (len(content) - 1)])
        ),
        "two columns of labels": lambda content: content.append_column("label", content["label"]),
        "two columns of probabilities": lambda content: content.append_column(
            "label_probabilities", content["label_probabilities"]
        ),
        "probabilities of text": lambda content: content.set_column(
            2, "label_probabilities", pa.array(["x"] * len(content))
        ),
        "lists of other lengths": lambda content: content.set_column(
            1, "embedding", pa.array([[1.0] * (1 + row % 7) for row in range(len(content))])
        ),
        "one list of 40 million": lambda content: content.set_column(
            1, "embedding", pa.array([np.zeros(4 * 10**7), *[[1.0] * DIMENSION] * (len(content) - 1)])
        ),
    }
    for title, change in changes.items():
        yield Case("train", f"a release with {title}", (), ("--synthetic",), _synthetic(change))
    files: dict[str, Prepare] = {
        "a fifo": fifo("release/synthetic/z.parquet"),
        "a device": link("release/synthetic/z.parquet", "/dev/zero"),
        "8 GiB of zeros": huge("release/synthetic/z.parquet"),
        "a file more": lambda at: shutil.copy(
            at / "in/rows-0.parquet", at / "release/synthetic/part-z.parquet"
        ),
        "no file": lambda at: shutil.rmtree(at / "release/synthetic"),
        "a damaged file": lambda at: damage(next((at / "release/synthetic").iterdir())),
        "a file of text": lambda at: next((at / "release/synthetic").iterdir()).write_bytes(b"no Parquet"),
        "no configuration": manifest("config", DELETE),
    }
    for title, prepare in files.items():
        yield Case("train", f"a release with {title}", (), ("--synthetic",), prepare)
    values: dict[str, tuple[object, ...]] = {
        "config.clip_norm": (-1, 0, "x", [], 1e300),
        "config.dimension": (0, -1, 3, 5, 1e9, "x", None, [4], 4.0),
        "config.classes": (
            [],
            ["a"],
            ["a", "a", "b"],
            ["a", "b", ""],
            "abc",
            None,
            [1, 2, 3],
            ["a", "b"],
            ["x"] * 9,
        ),
        "config": (None, [], "x", 3),
        "schema_version": (0, 99, "1", None, ESCAPES),
    }
    for name, bad in values.items():
        for value in bad:
            yield Case(
                "train", f"a manifest with {name} = {value!r}", (), ("--synthetic",), manifest(name, value)
            )
    for title, prepare in manifests().items():
        yield Case("train", f"a manifest that is {title}", (), ("--synthetic",), prepare)


def _verify() -> Iterator[Case]:
    paths = ("", "{at}/nowhere", "{at}/in", "{at}/key", "bogus://x/y", "{at}/" + RAW, "/dev/null", "/proc")
    yield from of_values("verify", "--release", paths)
    for title, prepare in manifests().items():
        yield Case("verify", f"a manifest that is {title}", (), ("--release",), prepare, finds=True)
    names = (
        *("schema_version", "release_id", "config", "config_digest", "privacy", "versions", "files"),
        *("privacy.epsilon", "privacy.delta", "privacy.adjacency", "privacy.neighboring_relation"),
        *("privacy.privacy_unit", "privacy.noise_multiplier", "privacy.mechanisms", "privacy.dp_event"),
        "privacy.noisy_rows",
        *("privacy.mechanisms.0.name", "privacy.mechanisms.0.share", "privacy.mechanisms.0.repetitions"),
        *(
            "files.0.path",
            "files.0.size",
            "files.0.sha256",
            "config.classes",
            "config.dimension",
            "config.epsilon",
        ),
        *(
            "config.samples_per_class",
            "config.components",
            "config.shares",
            "config.method",
            "config.encoder",
        ),
    )
    for name in names:
        for value in (DELETE, ESCAPES, -7, 1e308):
            title = "gone" if value is DELETE else f"{value!r}"
            if name == "versions" and value is not DELETE:
                continue
            yield Case("verify", f"{name} is {title}", (), ("--release",), manifest(name, value), finds=True)
    files: dict[str, Prepare] = {
        "a path outside": manifest("files.0.path", "../key"),
        "an absolute path": manifest("files.0.path", "/etc/passwd"),
        "no files listed": manifest("files", []),
        "a file more": lambda at: shutil.copy(
            at / "in/rows-0.parquet", at / "release/synthetic/part-z.parquet"
        ),
        "a file that is gone": lambda at: next((at / "release/synthetic").iterdir()).unlink(),
        "a file that was damaged": lambda at: damage(next((at / "release/synthetic").iterdir())),
        "a file that is a fifo": lambda at: replace(next((at / "release/synthetic").iterdir()), os.mkfifo),
        "a file of 8 GiB": lambda at: os.truncate(next((at / "release/synthetic").iterdir()), 2**33),
        "a noise multiplier of .01": manifest("privacy.mechanisms.0.noise_multiplier", 0.01),
        "an event of noise 0": manifest("privacy.dp_event", {"GaussianDpEvent": {"noise_multiplier": 0}}),
        "an event of noise .01": manifest(
            "privacy.dp_event", {"GaussianDpEvent": {"noise_multiplier": 0.01}}
        ),
        "a count of 10^9": manifest(
            "privacy.dp_event",
            {"SelfComposedDpEvent": {"event": {"GaussianDpEvent": {"noise_multiplier": 9}}, "count": 10**9}},
        ),
    }
    for title, prepare in files.items():
        yield Case("verify", f"a release with {title}", (), ("--release",), prepare, finds=True)


def _sample() -> Iterator[Case]:
    yield from of_values("sample", "--rows", (*NOT_WHOLE, 0, -1, 2**31 + 1, 10**12, 2**63))
    yield from of_values("sample", "--seed", (*NOT_WHOLE, -1, 2**64))
    yield from of_values("sample", "--threads", (*NOT_WHOLE, -1, 257))
    yield from of_values(
        "sample", "--release", ("", "{at}/nowhere", "{at}/in", "{at}/key", "bogus://x/y", "{at}/" + RAW)
    )
    yield from places("sample", "--output")
    yield from of_values(
        "sample", "--output", ("{at}/release", "{at}/release/x", "{at}", "{at}/in", "{at}/" + "x" * 240)
    )
    for title, prepare in manifests().items():
        yield Case("sample", f"a manifest that is {title}", (), ("--release",), prepare)
    mixture = "release/mixture"
    files: dict[str, Prepare] = {
        "no mixture": lambda at: shutil.rmtree(at / mixture),
        "a damaged mixture": lambda at: damage(at / mixture / "components.parquet"),
        "a basis that is a fifo": lambda at: replace(at / mixture / "basis.parquet", os.mkfifo),
        "a basis of 8 GiB": lambda at: os.truncate(at / mixture / "basis.parquet", 2**33),
        "no teacher": lambda at: (at / mixture / "teacher.parquet").unlink(),
        "no files listed": manifest("files", []),
        "files that are none": manifest("files", "x"),
        "no files": manifest("files", DELETE),
        "no id": manifest("release_id", DELETE),
    }
    for title, prepare in files.items():
        yield Case("sample", f"a release with {title}", (), ("--release",), prepare)


def _config() -> Iterator[Case]:
    for verb in ("embed", "release", "train", "sample", "demo"):
        yield from of_values(verb, "--config", ("", "{at}/nowhere", "{at}/in", "bogus://x/y", "{at}/" + RAW))
    files: dict[str, Prepare] = {
        "empty of meaning": write("odd", b"- a\n- b\n"),
        "no YAML": write("odd", b"a: b: c\n"),
        "no text": write("odd", b"\xff\xfe\x00"),
        "deep": write("odd", b"[" * 10**6),
        "a bomb of aliases": write("odd", b"a: &a [x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a]\n"),
        "code": write("odd", b"rows: !!python/object/apply:os.system ['touch made']\n"),
        "8 GiB": huge("odd"),
        "a fifo": lambda at: os.mkfifo(at / "odd"),
        "of another verb": write("odd", b"epsilon: 1\n"),
        "of unknown options": write("odd", b"rowz: 1\n"),
        "of a bad type": write("odd", b"rows: some\n"),
        "of a list": write("odd", b"seed: [1, 2]\n"),
        "of nothing": write("odd", b"seed:\n"),
        "of twice the same": write("odd", b"seed: 1\nseed: 1\n"),
        "of itself": write("odd", b"config: odd\n"),
    }
    for title, prepare in files.items():
        yield Case("sample", f"options {title}", ("--config={at}/odd",), ("--config",), prepare)
    yield Case("sample", "options twice", ("--config={at}/key", "--config={at}/key"), ("--config",))


def _demo() -> Iterator[Case]:
    yield from of_values(
        "demo", "--epsilons", ("", "x", "1,", "-1", "1,-1", "0", "nan", "inf", "1e9", "1;2", RAW)
    )
    yield from of_values("demo", "--keys", (*NOT_WHOLE, 0, -1, 101, 10**9))
    yield from of_values("demo", "--size", (*NOT_WHOLE, 0, -1, 31, 1025, 10**12))
    yield Case("demo", "a size beside --full", ("--full", "--size=128"), ("--size",))
    yield from of_values(
        "demo",
        "--work",
        ("", "{at}/key", "{at}/key/below", "/proc/x", "/dev/null", "gs://x/y", "{at}/" + RAW),
    )
    yield Case("demo", "work is a link to itself", ("--work={at}/odd",), ("--work",), link("odd", "odd"))
    yield Case("demo", "its private folder is open", (), ("--work",), folder("demo/private", 0o755))
    yield from of_values("demo", "--data", ("", "{at}/nowhere", "{at}/in", "{at}/key", "{at}/" + RAW))
    name = "fashion/train-images-idx3-ubyte.gz"
    data: dict[str, Prepare] = {
        "no gzip": write(name, b"no gzip"),
        "empty": write(name, b""),
        "cut short": lambda at: os.truncate(at / name, 100),
        "a small bomb": write(name, gzip.compress(bytes(2**28), 9)),
        "8 GiB": huge(name),
        "a fifo": lambda at: replace(at / name, os.mkfifo),
        "a folder": lambda at: replace(at / name, os.mkdir),
        "of another shape": write(name, idx(np.zeros((20, 27, 28), np.uint8))),
        "of fewer images": write(name, idx(np.zeros((19, 28, 28), np.uint8))),
        "plain numbers": write(name, gzip.compress(bytes(16))),
    }
    for title, prepare in data.items():
        yield Case("demo", f"images that are {title}", (), ("--data",), prepare)
    labels = write("fashion/t10k-labels-idx1-ubyte.gz", idx(np.full(10, 77, np.uint8)))
    yield Case("demo", "labels that are none", (), ("--data",), labels)
