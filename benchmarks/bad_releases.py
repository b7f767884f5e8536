"""Bad inputs of `dpgmm release`."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.bad_ground import (
    ESCAPES,
    KEYED,
    NOT_NUMBERS,
    NOT_WHOLE,
    RAW,
    Case,
    Prepare,
    both,
    fifo,
    folder,
    huge,
    link,
    missing,
    of_values,
    owned,
    places,
    special,
    table,
    vectors,
    write,
    write_key,
)
from dpgmm_beam.errors import printable


def cases() -> Iterator[Case]:
    """Those of `dpgmm release`, and of keys and private folders wherever they are named."""
    for some in (
        *(_release_values(), _classes(), _encoders(), _inputs(), _outputs(), _private_folders(), _keys()),
        *(_surroundings(), _beam_options()),
    ):
        yield from some


def _release_values() -> Iterator[Case]:
    yield from of_values(
        "release",
        "--epsilon",
        (
            *NOT_NUMBERS,
            "nan",
            "inf",
            "-inf",
            0,
            -1,
            "-0.0",
            1e-4,
            1001,
            1e4,
            1e6,
            1e9,
            1e308,
            "1e999",
            5e-324,
        ),
    )
    yield from of_values(
        "release",
        "--delta",
        (*NOT_NUMBERS, "nan", "inf", 0, -1, 0.5, 0.9999999, 1, 2, 1e-13, 1e-15, 1e-300, 1e308),
    )
    yield from of_values(
        "release", "--samples-per-class", (*NOT_WHOLE, 0, -1, 10**9, 10**12, 2**31, 2**63, 2**64, 10**30)
    )
    yield from of_values("release", "--components", (*NOT_WHOLE, 0, -1, 1025, 10**7, 2**31, 2**63, 10**30))
    yield from of_values(
        "release", "--rounds", (*NOT_WHOLE, 0, -1, 1000, 10**6, 2**63, 10**30), "--components=2"
    )
    yield from of_values(
        "release",
        "--clip-norm",
        (*NOT_NUMBERS, "nan", "inf", "-inf", 0, -2, 1e-300, 1e-18, 1e18, 1e300, "1e999"),
    )
    yield from of_values("release", "--dimension", (*NOT_WHOLE, 0, -1, 3, 5, 8193, 10**6, 2**31, 2**63))
    yield from of_values("release", "--threads", (*NOT_WHOLE, -1, 257, 10**6, 2**63))
    yield from of_values("release", "--block-rows", (*NOT_WHOLE, 0, -1, 65537, 2**31, 2**63))
    shares = (
        "means/count",
        "means/count=",
        "=1",
        "",
        "x=1",
        "means/count=x",
        "means/count=nan",
        "means/count=inf",
    )
    yield from of_values("release", "--share", shares)
    yield from of_values(
        "release", "--share", (f"means/count={value}" for value in (0, -1, 1e-320, 1e-7, 1e7, 1e308))
    )
    yield from of_values("release", "--share", ("means/count=1=2", RAW, ESCAPES))
    four = [
        f"--share={name}=1e308" for name in ("means/count", "means/sum", "moment/moment", "teacher/gradient")
    ]
    yield Case("release", "four huge shares", tuple(four), ("--share",))
    yield Case(
        "release",
        "noise too large",
        ("--epsilon=0.001", "--share=means/sum=1e-6", "--share=means/count=1e6"),
        ("--epsilon", "--share"),
    )
    for option in ("--epsilon", "--delta", "--classes", "--input", "--output", "--encoder"):
        yield missing("release", option)
    for value in (
        "",
        " ",
        "a b",
        "a\tb",
        "a\n",
        "a\u2028b",
        "a\x1b[31m",
        "x" * 257,
        "x" * 10**5,
        RAW,
        "a\u202eb",
        "\x7f",
    ):
        title = f"--release-id={value!r:.30} of {len(value)}"
        yield Case("release", title, (*KEYED, f"--release-id={value}"), ("--release-id",))


def _classes() -> Iterator[Case]:
    yield from of_values(
        "release", "--classes", ("", ",", "a,,b", "a,b,a", " ", "a, ,b", RAW, f"a,{RAW}", "x" * 1025)
    )
    many = ",".join(map(str, range(20000)))
    yield Case("release", "20,000 classes", (f"--classes={many}",), ("--classes",))
    yield Case("release", "a name twice among many", (f"--classes={many[:40000]},7",), ("--classes",))
    yield Case("release", "a class of escapes, twice", (f"--classes={ESCAPES},{ESCAPES}",), ("--classes",))
    yield from of_values(
        "release", "--classes", ("{at}/classes", "clases.txt", "classes.json", "./classes", "bogus://x/y")
    )
    yield from special("release", "--classes")
    contents = {
        "empty": b"",
        "blank": b"\n \n\t\n",
        "of bytes": b"\xff\xfe\x00",
        "with a name twice": b"a\nb\na\n",
        "with a mark and a name twice": b"\xef\xbb\xbfa\nb\na\n",
        "of 100,000 names": b"\n".join(b"%d" % number for number in range(100000)),
        "of one long line": b"x" * 10**6,
    }
    for title, data in contents.items():
        yield Case(
            "release",
            f"classes in a file {title}",
            ("--classes={at}/odd",),
            ("--classes",),
            write("odd", data),
        )


def _encoders() -> Iterator[Case]:
    names = (
        "",
        "vgg",
        "precomputed:x",
        "efficientnet_lite0",
        "efficientnet_lite0:0",
        "efficientnet_lite0:31",
    )
    yield from of_values("release", "--encoder", (*names, "efficientnet_lite0:x", "open_clip", RAW, ESCAPES))
    names = (
        "precomputed",
        "vgg",
        "efficientnet_lite0:1e9",
        "efficientnet_lite0:99999999999",
        "open_clip:",
        RAW,
    )
    names = (
        *names,
        "open_clip:none/x",
        "open_clip:ViT-B-32/none",
        "open_clip:ViT-B-32/",
        "open_clip:local-dir:",
    )
    names = (*names, "open_clip:hf-hub:", "open_clip:local-dir:/nowhere", "open_clip:local-dir:{at}/in")
    yield from of_values("embed", "--encoder", names)
    for title, prepare in {
        "garbage": write("odd", b"no weights"),
        "empty": write("odd", b""),
        "a fifo": fifo("odd"),
        "a folder": folder("odd"),
    }.items():
        yield Case(
            "embed", f"weights: {title}", ("--encoder=open_clip:ViT-B-32/{at}/odd",), ("--encoder",), prepare
        )
    config = both(folder("odd"), write("odd/open_clip_config.json", b"{"))
    yield Case(
        "embed",
        "a model's folder: no JSON",
        ("--encoder=open_clip:local-dir:{at}/odd",),
        ("--encoder",),
        config,
    )


def _rows(*tables: pa.Table | bytes) -> Prepare:
    """Replaces the input."""

    def prepare(at: Path) -> None:
        shutil.rmtree(at / "in")
        (at / "in").mkdir()
        for number, each in enumerate(tables):
            path = at / "in" / f"rows-{number}.parquet"
            if isinstance(each, bytes):
                path.write_bytes(each)
            else:
                pq.write_table(each, path)

    return prepare


def _schemas() -> dict[str, Prepare]:
    good = table(6)
    labels, values = good["label"], good["embedding"]

    def of(**columns: Any) -> Prepare:
        return _rows(pa.table(columns))

    return {
        "no columns that are known": of(other=[1, 2]),
        "no columns": _rows(pa.table({})),
        "embeddings of text": of(label=["a", "b"], embedding=["x", "y"]),
        "embeddings that are numbers": of(label=["a", "b"], embedding=[1.0, 2.0]),
        "embeddings of whole numbers": of(label=["a"], embedding=[[1, 2]]),
        "embeddings of lists of lists": of(label=["a"], embedding=[[[1.0], [2.0]]]),
        "embeddings of structs": of(label=["a"], embedding=[{"x": 1.0}]),
        "embeddings that are all null": of(label=["a"], embedding=pa.array([None])),
        "labels of floats": of(label=[0.5, 1.5, 2, 3, 4, 5], embedding=values),
        "labels of bytes": of(label=pa.array([b"a"] * 6, pa.binary()), embedding=values),
        "labels of lists": of(label=[["a"]] * 6, embedding=values),
        "lists of two lengths": of(label=["a", "b"], embedding=[[1.0, 2.0], [3.0]]),
        "embeddings too long": of(label=["a"], embedding=vectors(np.ones((1, 8193)))),
        "no embeddings and images of text": of(label=["a"], image=["x"]),
        "two columns of labels": _rows(
            pa.Table.from_arrays([labels, labels, values], ["label", "label", "embedding"])
        ),
        "two columns of embeddings": _rows(
            pa.Table.from_arrays([labels, values, values], ["label", "embedding", "embedding"])
        ),
        "files of two dimensions": _rows(
            good, pa.table({"label": ["a"], "embedding": vectors(np.ones((1, 5)))})
        ),
        "files with labels and without": _rows(good, good.drop_columns(["label"])),
        "files of other label types": _rows(good, pa.table({"label": range(6), "embedding": values})),
        "no labels and three classes": _rows(good.drop_columns(["label"])),
        "a name of escapes": of(**{ESCAPES: [1]}),
        "a file that is none": _rows(good, b"PAR1 no PAR1"),
        "an empty file": _rows(good, b""),
        "a file cut short": _rows(good, b"PAR1" + bytes(100)),
        "a file of zeros": _rows(bytes(1000)),
        "a footer of zeros": _rows(b"PAR1" + bytes(50) + (50).to_bytes(4, "little") + b"PAR1"),
        "a footer longer than the file": _rows(
            b"PAR1" + bytes(50) + (2**31 - 1).to_bytes(4, "little") + b"PAR1"
        ),
    }


def _inputs() -> Iterator[Case]:
    paths = (
        "",
        "{at}/nowhere",
        "{at}/nowhere/*.parquet",
        "{at}/key",
        "bogus://x/y",
        "s3://bucket/x",
        RAW,
        "{at}/in/[",
    )
    yield from of_values("release", "--input", paths)
    yield from special("release", "--input")
    for title, prepare in _schemas().items():
        # An encoder that was named for images and found embeddings, and so on.
        names = ("--input", "--classes") if "no labels" in title else ("--input", "--dimension")
        yield Case("release", f"input: {title}", (), names, prepare)
    odd: dict[str, Prepare] = {
        "a fifo among files": fifo("in/z.parquet"),
        "a link to itself among files": link("in/z.parquet", "z.parquet"),
        "a link to nowhere among files": link("in/z.parquet", "nowhere"),
        "a device among files": link("in/z.parquet", "/dev/zero"),
        "8 GiB of zeros among files": huge("in/z.parquet"),
        "an empty folder": both(lambda at: shutil.rmtree(at / "in"), folder("in")),
        "files and images": lambda at: shutil.copytree(at / "images/a", at / "in/a"),
    }
    for title, prepare in odd.items():
        yield Case("release", f"input: {title}", (), ("--input",), prepare)
    yield Case("release", "images as embeddings", ("--input={at}/images",), ("--encoder",))
    yield Case(
        "release",
        "images with --dimension",
        ("--input={at}/images", "--encoder=efficientnet_lite0:32", "--dimension=4"),
        ("--dimension",),
    )


def _outputs() -> Iterator[Case]:
    yield from places("release", "--output")
    long = (
        "{at}/" + "x" * 240,
        "{at}/" + "ü" * 110,
        "/proc",
        "/dev/shm",
        "{at}/in",
        "{at}/in/x",
        "{at}",
        "{at}/private/x",
    )
    yield from of_values("release", "--output", (*long, "{at}/private", "{at}/release"))
    output = "--output={at}/odd"
    names = ("--output", "--private-dir")
    yield Case(
        "release",
        "output is a link to a folder",
        (output,),
        names,
        both(folder("there"), link("odd", "there")),
    )
    yield Case(
        "release", "output holds something", (output,), names, both(folder("odd"), write("odd/x", b""))
    )
    yield Case(
        "release",
        "output holds something, to overwrite",
        (output, "--overwrite"),
        names,
        both(folder("odd"), write("odd/x", b"")),
    )
    yield Case(
        "release",
        "output has a manifest of something else",
        (output, "--overwrite"),
        names,
        both(folder("odd"), write("odd/manifest.json", b"{}"), write("odd/index.html", b"")),
    )
    yield Case(
        "release",
        "output holds a release and more",
        ("--output={at}/release", "--overwrite"),
        names,
        write("release/thesis.tex", b""),
    )
    inside = ("--output={at}/release", "--overwrite")
    yield Case(
        "release", "input in the release to overwrite", (*inside, "--input={at}/release/synthetic"), names
    )
    yield Case(
        "release",
        "key in the release to overwrite",
        (*inside, *KEYED, "--noise-key-file={at}/release/key"),
        ("--output", "--noise-key-file"),
        lambda at: write_key(at / "release/key"),
    )
    yield Case("release", "private folder in the output", (output, "--private-dir={at}/odd/private"), names)
    yield Case("release", "private folder is the output", (output, "--private-dir={at}/odd"), names)
    yield Case("release", "output beside a glob that matches it", ("--input={at}/*/*",), names)
    yield Case(
        "release",
        "output is a link's other name",
        ("--output={at}/other/release", "--input={at}/in"),
        names,
        link("other", "{at}/in"),
    )


def _private_folders() -> Iterator[Case]:
    yield from places("release", "--private-dir")
    yield from of_values("release", "--private-dir", ("{at}/in", "{at}/in/private"))
    private = ("--private-dir={at}/odd",)
    for mode in (0o755, 0o750, 0o777, 0o1777, 0o701, 0o770):
        yield Case(
            "release", f"private folder of mode {mode:o}", private, ("--private-dir",), folder("odd", mode)
        )
    yield Case(
        "release",
        "private folder of somebody else",
        private,
        ("--private-dir",),
        both(folder("odd"), owned("odd")),
    )
    yield Case(
        "release",
        "private folder is a link to an open folder",
        private,
        ("--private-dir",),
        both(folder("there", 0o755), link("odd", "there")),
    )
    for own in ("runs", "rows", "reports", "embeddings", "register", "charges"):
        yield Case(
            "release",
            f"input in the private folder's {own}",
            ("--input={at}/private/" + own,),
            ("--private-dir",),
            lambda at, own=own: (at / "private").mkdir(0o700) or shutil.move(at / "in", at / "private" / own),
        )
    yield Case(
        "release",
        "key in the private folder's runs",
        (*KEYED, "--noise-key-file={at}/private/runs/key"),
        ("--private-dir", "--noise-key-file"),
        lambda at: [
            (at / "private/runs").mkdir(0o700, parents=True),
            (at / "private").chmod(0o700),
            write_key(at / "private/runs/key"),
        ],
    )


def _keys() -> Iterator[Case]:
    option = "--noise-key-file"
    yield from special("release", option, *KEYED)
    yield from of_values(
        "release", option, ("", "{at}/nowhere", "bogus://x/y", "{at}/" + RAW, "{at}/in"), *KEYED
    )
    for size in (0, 1, 31, 33, 64, 4096, 10**6):
        yield Case(
            "release",
            f"a key of {size} bytes",
            KEYED,
            (option,),
            lambda at, size=size: write_key(at / "key", os.urandom(size)),
        )
    for mode in (0o644, 0o640, 0o604, 0o660, 0o620, 0o602, 0o666, 0o777, 0o601):
        yield Case(
            "release",
            f"a key of mode {mode:o}",
            KEYED,
            (option,),
            lambda at, mode=mode: (at / "key").chmod(mode),
        )
    yield Case("release", "a key of somebody else", KEYED, (option,), owned("key"))
    for byte in (b"\0", b"A", b"\xff"):
        yield Case(
            "release",
            f"a key of {byte!r} alone",
            KEYED,
            (option,),
            lambda at, byte=byte: write_key(at / "key", byte * 32),
        )
    yield Case("release", "a key and no id", KEYED[:1], (option,))
    yield Case("release", "an id and no key", KEYED[1:], ("--release-id",))
    yield Case("verify", "a key and no input", KEYED[:1], (option, "--input"))
    yield Case("verify", "an input and no key", ("--input={at}/in",), (option, "--input"))
    again = ("--input={at}/in", KEYED[0], "--private-dir={at}/private")
    yield Case("verify", "a key that others read", again, (option,), lambda at: (at / "key").chmod(0o644))
    yield Case("verify", "a key of one byte", again, (option,), lambda at: write_key(at / "key", bytes(32)))
    yield Case(
        "verify",
        "a key that is a fifo",
        again,
        (option,),
        both(lambda at: (at / "key").unlink(), fifo("key")),
    )
    yield Case(
        "verify", "a private folder that others enter", again, ("--private-dir",), folder("private", 0o755)
    )


def _surroundings() -> Iterator[Case]:
    """Of whom the private folder is, where none is named."""
    for title, environment in {
        "HOME is empty": {"HOME": "", "XDG_STATE_HOME": None},
        "HOME is relative": {"HOME": "home", "XDG_STATE_HOME": None},
        "XDG_STATE_HOME is relative": {"XDG_STATE_HOME": "state"},
        "HOME is a file": {"HOME": "{at}/key", "XDG_STATE_HOME": None},
        "HOME is nowhere to be made": {"HOME": "/proc/home", "XDG_STATE_HOME": None},
    }.items():
        yield Case("release by default", title, (), ("--private-dir",), environment=environment)
    if os.geteuid() == 0:
        unknown = 54321

        def theirs(at: Path) -> None:
            for path in (at, *at.rglob("*")):
                os.chown(path, unknown, unknown)

        yield Case(
            "release by default",
            "no HOME, and nobody knows the user",
            (),
            ("--private-dir",),
            theirs,
            {"HOME": None, "XDG_STATE_HOME": None},
            unknown,
        )
        yield Case(
            "release",
            "a private folder that can't be written",
            ("--private-dir={at}/odd",),
            ("--private-dir",),
            both(folder("odd", 0o500), theirs),
            user=unknown,
        )
        yield Case(
            "release",
            "an output that can't be written",
            ("--output={at}/odd/x",),
            ("--output",),
            both(folder("odd", 0o500), theirs),
            user=unknown,
        )
        yield Case(
            "release",
            "a key that can't be read",
            KEYED,
            ("--noise-key-file",),
            both(theirs, lambda at: (at / "key").chmod(0)),
            user=unknown,
        )
        yield Case(
            "release",
            "an input that can't be read",
            (),
            ("--input",),
            both(theirs, lambda at: (at / "in/rows-0.parquet").chmod(0)),
            user=unknown,
        )


def _beam_options() -> Iterator[Case]:
    odd: dict[str, tuple[tuple[str, ...], str]] = {}
    for name in (
        "Bogus",
        "Bogus.Dotted",
        "os.getcwd",
        "os",
        "dpgmm_beam.nothing.X",
        RAW,
        ESCAPES,
        "bogus.",
        ".x",
    ):
        odd[f"--runner={name!r}"] = ((f"--runner={name}",), "--runner")
    for value in ("-1", "0", "2", "x", "1.5", ""):
        odd[f"--direct_num_workers={value}"] = ((f"--direct_num_workers={value}",), "--direct_num_workers")
    for value in ("multi_processing", "bogus", ""):
        odd[f"--direct_running_mode={value}"] = ((f"--direct_running_mode={value}",), "--direct_running_mode")
    for option in (
        "--epsilom=1",
        "--epsilo=1",
        "--runne=DirectRunner",
        "--no-such",
        "--release-i=x",
        f"--{ESCAPES}=1",
    ):
        odd[f"{option!r}"] = ((option,), printable(option.partition("=")[0]))
    odd["a stray word"] = (("stray",), "option")
    odd["--runner without a value"] = (("--runner",), "--runner")
    odd["a job server that is none"] = (
        ("--runner=PortableRunner", "--job_endpoint=localhost:1"),
        "--job_endpoint",
    )
    odd["a job server without a port"] = (("--runner=PortableRunner", "--job_endpoint=x"), "--job_endpoint")
    odd["a Flink that is none"] = (("--runner=FlinkRunner", "--flink_master=localhost:1"), "--flink_master")
    odd["Dataflow without an image"] = (("--runner=DataflowRunner",), "--runner")
    odd["Beam's own job server"] = (("--runner=PortableRunner", "--job_endpoint=embed"), "--job_endpoint")
    odd["Prism from here"] = (("--runner=PrismRunner", "--no_wait_until_finish"), "--no_wait_until_finish")
    odd["a worker pool without an address"] = (
        ("--runner=PortableRunner", "--environment_type=EXTERNAL", "--environment_config=x"),
        "--environment_config",
    )
    for title, (options, name) in odd.items():
        names = (
            (name, "--sdk_container_image", "--runner") if name.startswith(("--no_", "--runner")) else (name,)
        )
        yield Case("release", title, options, names)
    for verb in ("embed", "demo", "verify"):
        yield Case(verb, "--epsilom", ("--epsilom=1",), ("--epsilom",))
        yield Case(verb, "two local workers", ("--direct_num_workers=2",), ("--direct_num_workers",))
