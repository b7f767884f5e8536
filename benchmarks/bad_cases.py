"""The bad inputs of `benchmarks/bad_inputs.py`: a table of commands that must all be refused.

Each case has a folder of its own, `{at}` in its options, with what `ground` makes:

    in/rows-*.parquet   rows of the classes a, b and c, 4 values each
    images/a/*.png      a few images of two labels
    test/0.parquet      rows to test a network on
    release/            a release of them
    fashion/            files as Fashion-MNIST has them, of a few images
    key                 32 random bytes, mode 0600
"""

import dataclasses
import gzip
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CLASSES, DIMENSION = ("a", "b", "c"), 4

COMMANDS: dict[str, tuple[str, ...]] = {
    "release": (
        *("--input={at}/in", "--encoder=precomputed", "--classes=a,b,c", "--epsilon=1", "--delta=1e-5"),
        *("--output={at}/out/release", "--private-dir={at}/private", "--samples-per-class=5"),
    ),
    "embed": ("--input={at}/images", "--encoder=efficientnet_lite0:32", "--output={at}/embeddings"),
    "train": ("--synthetic={at}/release", "--test={at}/test", "--output={at}/network", "--epochs=1"),
    "verify": ("--release={at}/release",),
    "demo": ("--work={at}/demo", "--data={at}/fashion", "--keys=1", "--epsilons=1"),
}
COMMANDS["release by default"] = tuple(
    option for option in COMMANDS["release"] if not option.startswith("--private-dir")
)
KEYED = ("--noise-key-file={at}/key", "--release-id=r")

RAW = "\udcff\udcfe"
"""Bytes of a command line that are no UTF-8."""

ESCAPES = "x\x1b[2J\x1b]0;title\x07\ny"
"""What would clear a terminal, and begin a line of its own."""

NOT_NUMBERS = ("", "x", "1,5", RAW, ESCAPES)
NOT_WHOLE = (*NOT_NUMBERS, "1.5", "nan", "9" * 5000)


@dataclasses.dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
      verb: of the command.
      title: what is bad.
      options: that follow the verb's command.
      names: options of which the sentence must name one.
      prepare: makes the case's folder bad.
      environment: changes; None takes a variable away.
      user: number of the user who runs it; None: who runs the benchmark.
      finds: whether the verb may also say what is wrong and end with 1.
    """

    verb: str
    title: str
    options: tuple[str, ...]
    names: tuple[str, ...]
    prepare: Callable[[Path], object] = lambda at: None
    environment: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    user: int | None = None
    finds: bool = False

    @property
    def name(self) -> str:
        return f"{self.verb} {self.title}".encode("unicode_escape").decode()[:100]

    def arguments(self, at: Path) -> list[str]:
        """The command line behind `dpgmm`."""
        options = (*COMMANDS[self.verb], *self.options)
        return [self.verb.split()[0], *(option.replace("{at}", str(at)) for option in options)]


def table(count: int, seed: int = 0, classes: Iterable[str] = CLASSES) -> pa.Table:
    generator = np.random.default_rng(seed)
    labels = [label for label, _ in zip(itertools.cycle(classes), range(count), strict=False)]
    return pa.table({"label": labels, "embedding": vectors(generator.normal(size=(count, DIMENSION)))})


def vectors(values: np.ndarray) -> pa.Array:
    values = np.asarray(values, np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def ground(at: Path) -> None:
    """Makes what the cases start from, but for the release."""
    from PIL import Image

    for name in ("in", "test", "images/a", "images/b", "fashion"):
        (at / name).mkdir(parents=True)
    for number in range(2):
        pq.write_table(table(60, number), at / "in" / f"rows-{number}.parquet")
    pq.write_table(table(30, 7), at / "test" / "0.parquet")
    generator = np.random.default_rng(0)
    for number in range(4):
        pixels = generator.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(at / "images" / "ab"[number % 2] / f"{number}.png")
    for stem, count in (("train", 20), ("t10k", 10)):
        images = idx(generator.integers(0, 256, (count, 28, 28), np.uint8))
        (at / "fashion" / f"{stem}-images-idx3-ubyte.gz").write_bytes(images)
        (at / "fashion" / f"{stem}-labels-idx1-ubyte.gz").write_bytes(
            idx(np.arange(count, dtype=np.uint8) % 10)
        )
    write_key(at / "key")


def idx(values: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return gzip.compress(bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes(), 1)


def write_key(path: Path, secret: bytes = bytes(range(32)), mode: int = 0o600) -> None:
    path.write_bytes(secret)
    path.chmod(mode)


def cases() -> list[Case]:
    """All of them; names differ."""
    found = [
        *_release_values(),
        *_classes(),
        *_encoders(),
        *_inputs(),
        *_outputs(),
        *_private_folders(),
        *_keys(),
        *_surroundings(),
        *_beam_options(),
        *_embed(),
        *_train(),
        *_tampered_training(),
        *_verify(),
        *_demo(),
    ]
    names = [case.name for case in found]
    assert len(set(names)) == len(names), [name for name in names if names.count(name) > 1]
    return found


def _values(verb: str, option: str, values: Iterable[object], *more: str) -> Iterator[Case]:
    for value in values:
        text = str(value)
        shown = text if len(text) < 40 else f"{text[:20]}... of {len(text)}"
        yield Case(verb, f"{option}={shown}", (*more, f"{option}={text}"), (option,))


def _missing(verb: str, option: str) -> Case:
    return Case(verb, f"{option} without a value", (option,), (option,))


def _release_values() -> Iterator[Case]:
    yield from _values(
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
    yield from _values(
        "release",
        "--delta",
        (*NOT_NUMBERS, "nan", "inf", 0, -1, 0.5, 0.9999999, 1, 2, 1e-13, 1e-15, 1e-300, 1e308),
    )
    yield from _values(
        "release", "--samples-per-class", (*NOT_WHOLE, 0, -1, 10**9, 10**12, 2**31, 2**63, 2**64, 10**30)
    )
    yield from _values("release", "--components", (*NOT_WHOLE, 0, -1, 4097, 10**7, 2**31, 2**63, 10**30))
    yield from _values(
        "release", "--rounds", (*NOT_WHOLE, 0, -1, 1000, 10**6, 2**63, 10**30), "--components=2"
    )
    yield from _values(
        "release",
        "--clip-norm",
        (*NOT_NUMBERS, "nan", "inf", "-inf", 0, -2, 1e-300, 1e-18, 1e18, 1e300, "1e999"),
    )
    yield from _values("release", "--dimension", (*NOT_WHOLE, 0, -1, 3, 5, 8193, 10**6, 2**31, 2**63))
    yield from _values("release", "--threads", (*NOT_WHOLE, -1, 257, 10**6, 2**63))
    yield from _values("release", "--block-rows", (*NOT_WHOLE, 0, -1, 65537, 2**31, 2**63))
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
    yield from _values("release", "--share", shares)
    yield from _values(
        "release", "--share", (f"means/count={value}" for value in (0, -1, 1e-320, 1e-7, 1e7, 1e308))
    )
    yield from _values("release", "--share", ("means/count=1=2", RAW, ESCAPES))
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
        yield _missing("release", option)
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


def _write(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda at: (at / name).write_bytes(data)


def _fifo(name: str) -> Callable[[Path], object]:
    return lambda at: os.mkfifo(at / name)


def _link(name: str, target: str) -> Callable[[Path], object]:
    return lambda at: (at / name).symlink_to(target.replace("{at}", str(at)))


def _folder(name: str, mode: int = 0o700) -> Callable[[Path], object]:
    def prepare(at: Path) -> None:
        (at / name).mkdir(parents=True)
        (at / name).chmod(mode)

    return prepare


def _huge(name: str, size: int = 2**33) -> Callable[[Path], object]:
    def prepare(at: Path) -> None:
        with open(at / name, "wb") as file:
            file.truncate(size)

    return prepare


def _owned(name: str, user: int = 65534) -> Callable[[Path], object]:
    return lambda at: os.chown(at / name, user, user)


def _both(*steps: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda at: [step(at) for step in steps]


def _special(verb: str, option: str, *more: str) -> Iterator[Case]:
    """Things that are no regular file, or not as large as one of its kind."""
    kinds: dict[str, Callable[[Path], object]] = {
        "a folder": _folder("odd"),
        "a fifo": _fifo("odd"),
        "a link to itself": _link("odd", "odd"),
        "a link to nowhere": _link("odd", "{at}/nowhere"),
        "a link to a device": _link("odd", "/dev/zero"),
        "8 GiB": _huge("odd"),
    }
    for title, prepare in kinds.items():
        yield Case(verb, f"{option} is {title}", (*more, f"{option}={{at}}/odd"), (option,), prepare)
    for path in (
        "/dev/zero",
        "/dev/null",
        "/dev/tty",
        "/proc/self/mem",
        "{at}/key/below",
        "{at}/nowhere/file.txt",
    ):
        yield Case(verb, f"{option}={path}", (*more, f"{option}={path}"), (option,))


def _classes() -> Iterator[Case]:
    yield from _values(
        "release", "--classes", ("", ",", "a,,b", "a,b,a", " ", "a, ,b", RAW, f"a,{RAW}", "x" * 1025)
    )
    many = ",".join(map(str, range(20000)))
    yield Case("release", "20,000 classes", (f"--classes={many}",), ("--classes",))
    yield Case("release", "a name twice among many", (f"--classes={many[:40000]},7",), ("--classes",))
    yield Case("release", "a class of escapes, twice", (f"--classes={ESCAPES},{ESCAPES}",), ("--classes",))
    yield from _values(
        "release", "--classes", ("{at}/classes", "clases.txt", "classes.json", "./classes", "bogus://x/y")
    )
    yield from _special("release", "--classes")
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
            _write("odd", data),
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
    yield from _values("release", "--encoder", (*names, "efficientnet_lite0:x", "open_clip", RAW, ESCAPES))
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
    yield from _values("embed", "--encoder", names)
    for title, prepare in {
        "garbage": _write("odd", b"no weights"),
        "empty": _write("odd", b""),
        "a fifo": _fifo("odd"),
        "a folder": _folder("odd"),
    }.items():
        yield Case(
            "embed", f"weights: {title}", ("--encoder=open_clip:ViT-B-32/{at}/odd",), ("--encoder",), prepare
        )
    config = _both(_folder("odd"), _write("odd/open_clip_config.json", b"{"))
    yield Case(
        "embed",
        "a model's folder: no JSON",
        ("--encoder=open_clip:local-dir:{at}/odd",),
        ("--encoder",),
        config,
    )


def _rows(*tables: pa.Table | bytes) -> Callable[[Path], object]:
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


def _schemas() -> dict[str, Callable[[Path], object]]:
    good = table(6)
    labels, values = good["label"], good["embedding"]

    def of(**columns: Any) -> Callable[[Path], object]:
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
    yield from _values("release", "--input", paths)
    yield from _special("release", "--input")
    for title, prepare in _schemas().items():
        # An encoder that was named for images and found embeddings, and so on.
        names = ("--input", "--classes") if "no labels" in title else ("--input", "--dimension")
        yield Case("release", f"input: {title}", (), names, prepare)
    odd: dict[str, Callable[[Path], object]] = {
        "a fifo among files": _fifo("in/z.parquet"),
        "a link to itself among files": _link("in/z.parquet", "z.parquet"),
        "a link to nowhere among files": _link("in/z.parquet", "nowhere"),
        "a device among files": _link("in/z.parquet", "/dev/zero"),
        "8 GiB of zeros among files": _huge("in/z.parquet"),
        "an empty folder": _both(lambda at: shutil.rmtree(at / "in"), _folder("in")),
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


def _places(verb: str, option: str, *more: str) -> Iterator[Case]:
    """Where no folder can be made, or put in place."""
    paths = (
        "",
        "{at}/key",
        "{at}/key/below",
        "{at}/key/below/it",
        "/proc/x",
        "/proc/self/x",
        "/sys/x",
        "/dev/null",
    )
    paths = (
        *paths,
        "/",
        "bogus://x/y",
        "{at}/" + RAW,
        "{at}/" + "x" * 256,
        "{at}/" + "x" * 300,
        "{at}" + "/x" * 3000,
    )
    yield from _values(verb, option, paths, *more)
    for title, prepare in {
        "a link to itself": _link("odd", "odd"),
        "a link to nowhere": _link("odd", "{at}/nowhere"),
        "a link to a file": _link("odd", "{at}/key"),
        "a fifo": _fifo("odd"),
    }.items():
        yield Case(verb, f"{option} is {title}", (*more, f"{option}={{at}}/odd"), (option,), prepare)
        yield Case(verb, f"{option} is below {title}", (*more, f"{option}={{at}}/odd/x"), (option,), prepare)


def _outputs() -> Iterator[Case]:
    yield from _places("release", "--output")
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
    yield from _values("release", "--output", (*long, "{at}/private", "{at}/release"))
    output = "--output={at}/odd"
    names = ("--output", "--private-dir")
    yield Case(
        "release",
        "output is a link to a folder",
        (output,),
        names,
        _both(_folder("there"), _link("odd", "there")),
    )
    yield Case(
        "release", "output holds something", (output,), names, _both(_folder("odd"), _write("odd/x", b""))
    )
    yield Case(
        "release",
        "output holds something, to overwrite",
        (output, "--overwrite"),
        names,
        _both(_folder("odd"), _write("odd/x", b"")),
    )
    yield Case(
        "release",
        "output has a manifest of something else",
        (output, "--overwrite"),
        names,
        _both(_folder("odd"), _write("odd/manifest.json", b"{}"), _write("odd/index.html", b"")),
    )
    yield Case(
        "release",
        "output holds a release and more",
        ("--output={at}/release", "--overwrite"),
        names,
        _write("release/thesis.tex", b""),
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
    yield Case("release", "output beside a glob that matches it", ("--input={at}/*/*.parquet",), names)
    yield Case(
        "release",
        "output is a link's other name",
        ("--output={at}/other/release", "--input={at}/in"),
        names,
        _link("other", "{at}/in"),
    )


def _private_folders() -> Iterator[Case]:
    yield from _places("release", "--private-dir")
    yield from _values("release", "--private-dir", ("{at}/in", "{at}/in/private"))
    private = ("--private-dir={at}/odd",)
    for mode in (0o755, 0o750, 0o777, 0o1777, 0o701, 0o770):
        yield Case(
            "release", f"private folder of mode {mode:o}", private, ("--private-dir",), _folder("odd", mode)
        )
    yield Case(
        "release",
        "private folder of somebody else",
        private,
        ("--private-dir",),
        _both(_folder("odd"), _owned("odd")),
    )
    yield Case(
        "release",
        "private folder is a link to an open folder",
        private,
        ("--private-dir",),
        _both(_folder("there", 0o755), _link("odd", "there")),
    )
    for own in ("runs", "rows", "reports", "embeddings", "register"):
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
    yield from _special("release", option, *KEYED)
    yield from _values(
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
    yield Case("release", "a key of somebody else", KEYED, (option,), _owned("key"))
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
        _both(lambda at: (at / "key").unlink(), _fifo("key")),
    )
    yield Case(
        "verify", "a private folder that others enter", again, ("--private-dir",), _folder("private", 0o755)
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
            _both(_folder("odd", 0o500), theirs),
            user=unknown,
        )
        yield Case(
            "release",
            "an output that can't be written",
            ("--output={at}/odd/x",),
            ("--output",),
            _both(_folder("odd", 0o500), theirs),
            user=unknown,
        )
        yield Case(
            "release",
            "a key that can't be read",
            KEYED,
            ("--noise-key-file",),
            _both(theirs, lambda at: (at / "key").chmod(0)),
            user=unknown,
        )
        yield Case(
            "release",
            "an input that can't be read",
            (),
            ("--input",),
            _both(theirs, lambda at: (at / "in/rows-0.parquet").chmod(0)),
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
        odd[f"{option!r}"] = ((option,), option.partition("=")[0].replace(ESCAPES, "x"))
    odd["a stray word"] = (("stray",), "option")
    odd["--runner without a value"] = (("--runner",), "--runner")
    odd["a job server that is none"] = (
        ("--runner=PortableRunner", "--job_endpoint=localhost:1"),
        "--job_endpoint",
    )
    odd["a job server without a port"] = (("--runner=PortableRunner", "--job_endpoint=x"), "--job_endpoint")
    odd["a Flink that is none"] = (("--runner=FlinkRunner", "--flink_master=localhost:1"), "--flink_master")
    odd["Dataflow without an image"] = (("--runner=DataflowRunner",), "--runner")
    odd["a pool that is none"] = (
        (
            "--runner=PortableRunner",
            "--job_endpoint=embed",
            "--environment_type=EXTERNAL",
            "--environment_config=x",
        ),
        "--environment_config",
    )
    odd["Prism that does not wait"] = (
        ("--runner=PrismRunner", "--no_wait_until_finish"),
        "--no_wait_until_finish",
    )
    for title, (options, name) in odd.items():
        names = (name, "--sdk_container_image") if "Dataflow" in title else (name,)
        yield Case("release", title, options, names)
    for verb in ("embed", "demo", "verify"):
        yield Case(verb, "--epsilom", ("--epsilom=1",), ("--epsilom",))
        yield Case(verb, "two local workers", ("--direct_num_workers=2",), ("--direct_num_workers",))


def _embed() -> Iterator[Case]:
    yield from _values("embed", "--threads", (*NOT_WHOLE, -1, 257, 10**6))
    yield from _values("embed", "--shard-rows", (*NOT_WHOLE, 0, -1, 8193, 10**12))
    yield from _values("embed", "--batch-size", (*NOT_WHOLE, -1, 4097, 10**12))
    yield from _values(
        "embed", "--input", ("", "{at}/nowhere", "{at}/key", "bogus://x/y", "{at}/in", "{at}/" + RAW)
    )
    yield from _special("embed", "--input")
    yield from _places("embed", "--output")
    yield from _values("embed", "--output", ("{at}/images", "{at}/images/a", "{at}/images/new", "{at}"))
    output, names = ("--output={at}/odd",), ("--output",)
    for mode in (0o755, 0o777, 0o1777, 0o750):
        yield Case("embed", f"output of mode {mode:o}", output, names, _folder("odd", mode))
    yield Case("embed", "output of somebody else", output, names, _both(_folder("odd"), _owned("odd")))
    yield Case(
        "embed", "output holds something", output, names, _both(_folder("odd"), _write("odd/thesis", b""))
    )
    yield Case(
        "embed",
        "output holds Parquet",
        output,
        names,
        _both(_folder("odd"), _write("odd/shard-0.parquet", b"")),
    )
    markers: dict[str, Callable[[Path], object]] = {
        "no JSON": _write("odd/_dpgmm_embed.json", b"{"),
        "empty": _write("odd/_dpgmm_embed.json", b""),
        "bytes": _write("odd/_dpgmm_embed.json", b"\xff\xfe"),
        "deep": _write("odd/_dpgmm_embed.json", b"[" * 10**4),
        "a list": _write("odd/_dpgmm_embed.json", b"[1]"),
        "of another input": _write("odd/_dpgmm_embed.json", b'{"input": "/x", "encoder": "y"}'),
        "8 GiB": _huge("odd/_dpgmm_embed.json"),
        "a fifo": _fifo("odd/_dpgmm_embed.json"),
        "a folder": _folder("odd/_dpgmm_embed.json"),
        "a link to itself": _link("odd/_dpgmm_embed.json", "_dpgmm_embed.json"),
    }
    for title, prepare in markers.items():
        yield Case("embed", f"marker: {title}", output, names, _both(_folder("odd"), prepare))


def _train() -> Iterator[Case]:
    for option in ("--hidden", "--epochs", "--batch-size"):
        yield from _values("train", option, (*NOT_WHOLE, 0, -1, 10**6, 10**12, 2**63))
    for option in ("--learning-rate", "--label-temperature"):
        yield from _values(
            "train", option, (*NOT_NUMBERS, "nan", "inf", "-inf", 0, -1, 1e-300, 1e300, 1e-320)
        )
    yield from _values("train", "--seed", (*NOT_WHOLE, -1, 2**63, 10**30))
    yield from _values("train", "--labels", ("", "x", "SOFT", RAW))
    yield from _values("train", "--clip-norm", ("x", "nan", 0, -1, 1e300, 1))
    yield from _values("train", "--dimension", ("x", 0, -1, 10**6, 4))
    for option in ("--synthetic", "--test"):
        yield from _values(
            "train", option, ("", "{at}/nowhere", "{at}/key", "bogus://x/y", "{at}/images", "{at}/" + RAW)
        )
        yield from _special("train", option)
    yield from _places("train", "--output")
    yield from _values(
        "train", "--output", ("{at}/release", "{at}/release/x", "{at}/test", "{at}/" + "x" * 240, "{at}")
    )
    output, names = ("--output={at}/odd",), ("--output",)
    yield Case(
        "train", "output is a link to a folder", output, names, _both(_folder("there"), _link("odd", "there"))
    )
    yield Case(
        "train",
        "output holds something",
        (*output, "--overwrite"),
        names,
        _both(_folder("odd"), _write("odd/x", b"")),
    )
    yield Case(
        "train", "output holds a training", output, names, _both(_folder("odd"), _write("odd/model.pt", b""))
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
    yield Case("train", "a test file that is none", (), ("--test",), _write("test/0.parquet", b"PAR1 PAR1"))
    yield Case("train", "a fifo among test files", (), ("--test",), _fifo("test/z.parquet"))
    yield Case("train", "a damaged test file", (), ("--test",), lambda at: _damage(at / "test" / "0.parquet"))


def _damage(path: Path) -> None:
    """Zeros over the pages of a Parquet file; its footer stays."""
    data = bytearray(path.read_bytes())
    footer = int.from_bytes(data[-8:-4], "little")
    end = len(data) - 8 - footer
    data[4:end] = bytes(end - 4)
    path.write_bytes(data)


def _synthetic(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], object]:
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
    files: dict[str, Callable[[Path], object]] = {
        "a fifo": _fifo("release/synthetic/z.parquet"),
        "a device": _link("release/synthetic/z.parquet", "/dev/zero"),
        "8 GiB of zeros": _huge("release/synthetic/z.parquet"),
        "a file more": lambda at: shutil.copy(
            at / "in/rows-0.parquet", at / "release/synthetic/part-z.parquet"
        ),
        "no file": lambda at: shutil.rmtree(at / "release/synthetic"),
        "a damaged file": lambda at: _damage(next((at / "release/synthetic").iterdir())),
        "a file of text": lambda at: next((at / "release/synthetic").iterdir()).write_bytes(b"no Parquet"),
        "no configuration": _manifest("config", DELETE),
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
                "train", f"a manifest with {name} = {value!r}", (), ("--synthetic",), _manifest(name, value)
            )
    for title, prepare in _manifests().items():
        yield Case("train", f"a manifest that is {title}", (), ("--synthetic",), prepare)


DELETE = object()


def _manifest(name: str, value: object) -> Callable[[Path], object]:
    """Sets or deletes an entry of the release's manifest."""

    def prepare(at: Path) -> None:
        path = at / "release" / "manifest.json"
        content = json.loads(path.read_text())
        *outer, last = [int(part) if part.isdigit() else part for part in name.split(".")]
        place = content
        for part in outer:
            place = place[part]
        if value is DELETE:
            del place[last]
        else:
            place[last] = value
        path.write_text(json.dumps(content))

    return prepare


def _manifests() -> dict[str, Callable[[Path], object]]:
    path = "release/manifest.json"

    def gone(at: Path) -> None:
        (at / path).unlink()

    return {
        "empty": _write(path, b""),
        "no JSON": _write(path, b"{"),
        "bytes": _write(path, b"\xff\xfe\x00"),
        "null": _write(path, b"null"),
        "a list": _write(path, b"[]"),
        "a number": _write(path, b"1"),
        "an empty object": _write(path, b"{}"),
        "400 deep": _write(path, b'{"schema_version":' * 400 + b"1" + b"}" * 400),
        "100,000 deep": _write(path, b"[" * 10**5),
        "a number of 10,000 digits": _write(path, b'{"schema_version": ' + b"9" * 10000 + b"}"),
        "8 GiB": _both(gone, _huge(path)),
        "a fifo": _both(gone, _fifo(path)),
        "a folder": _both(gone, _folder(path)),
        "a device": _both(gone, _link(path, "/dev/zero")),
        "a link to itself": _both(gone, _link(path, "manifest.json")),
    }


def _verify() -> Iterator[Case]:
    paths = ("", "{at}/nowhere", "{at}/in", "{at}/key", "bogus://x/y", "{at}/" + RAW, "/dev/null", "/proc")
    yield from _values("verify", "--release", paths)
    for title, prepare in _manifests().items():
        yield Case("verify", f"a manifest that is {title}", (), ("--release",), prepare, finds=True)
    names = (
        *("schema_version", "release_id", "config", "config_digest", "privacy", "versions", "files"),
        *("privacy.epsilon", "privacy.delta", "privacy.adjacency", "privacy.neighboring_relation"),
        *("privacy.privacy_unit", "privacy.noise_multiplier", "privacy.mechanisms", "privacy.dp_event"),
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
            yield Case("verify", f"{name} is {title}", (), ("--release",), _manifest(name, value), finds=True)
    files: dict[str, Callable[[Path], object]] = {
        "a path outside": _manifest("files.0.path", "../key"),
        "an absolute path": _manifest("files.0.path", "/etc/passwd"),
        "no files listed": _manifest("files", []),
        "a file more": lambda at: shutil.copy(
            at / "in/rows-0.parquet", at / "release/synthetic/part-z.parquet"
        ),
        "a file that is gone": lambda at: next((at / "release/synthetic").iterdir()).unlink(),
        "a file that was damaged": lambda at: _damage(next((at / "release/synthetic").iterdir())),
        "a file that is a fifo": lambda at: _replace(next((at / "release/synthetic").iterdir()), os.mkfifo),
        "a file of 8 GiB": lambda at: os.truncate(next((at / "release/synthetic").iterdir()), 2**33),
        "a noise multiplier of .01": _manifest("privacy.mechanisms.0.noise_multiplier", 0.01),
        "an event of noise 0": _manifest("privacy.dp_event", {"GaussianDpEvent": {"noise_multiplier": 0}}),
        "an event of noise .01": _manifest(
            "privacy.dp_event", {"GaussianDpEvent": {"noise_multiplier": 0.01}}
        ),
        "a count of 10^9": _manifest(
            "privacy.dp_event",
            {"SelfComposedDpEvent": {"event": {"GaussianDpEvent": {"noise_multiplier": 9}}, "count": 10**9}},
        ),
    }
    for title, prepare in files.items():
        yield Case("verify", f"a release with {title}", (), ("--release",), prepare, finds=True)


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def _demo() -> Iterator[Case]:
    yield from _values(
        "demo", "--epsilons", ("", "x", "1,", "-1", "1,-1", "0", "nan", "inf", "1e9", "1;2", RAW)
    )
    yield from _values("demo", "--keys", (*NOT_WHOLE, 0, -1, 101, 10**9))
    yield from _values(
        "demo",
        "--work",
        ("", "{at}/key", "{at}/key/below", "/proc/x", "/dev/null", "gs://x/y", "{at}/" + RAW),
    )
    yield Case("demo", "work is a link to itself", ("--work={at}/odd",), ("--work",), _link("odd", "odd"))
    yield Case("demo", "its private folder is open", (), ("--work",), _folder("demo/private", 0o755))
    yield from _values("demo", "--data", ("", "{at}/nowhere", "{at}/in", "{at}/key", "{at}/" + RAW))
    name = "fashion/train-images-idx3-ubyte.gz"
    data: dict[str, Callable[[Path], object]] = {
        "no gzip": _write(name, b"no gzip"),
        "empty": _write(name, b""),
        "cut short": lambda at: os.truncate(at / name, 100),
        "a small bomb": _write(name, gzip.compress(bytes(2**28), 9)),
        "8 GiB": _huge(name),
        "a fifo": lambda at: _replace(at / name, os.mkfifo),
        "a folder": lambda at: _replace(at / name, os.mkdir),
        "of another shape": _write(name, idx(np.zeros((20, 27, 28), np.uint8))),
        "of fewer images": _write(name, idx(np.zeros((19, 28, 28), np.uint8))),
        "plain numbers": _write(name, gzip.compress(bytes(16))),
    }
    for title, prepare in data.items():
        yield Case("demo", f"images that are {title}", (), ("--data",), prepare)
    labels = _write("fashion/t10k-labels-idx1-ubyte.gz", idx(np.full(10, 77, np.uint8)))
    yield Case("demo", "labels that are none", (), ("--data",), labels)
