"""What bad inputs are made from: good ones, in a folder of each case's own, and ways to spoil them.

`{at}` in a case's options is its folder, with what `ground` makes, and a release:

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

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
    "sample": ("--release={at}/release", "--rows=10", "--output={at}/sampled", "--seed=1"),
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


Prepare = Callable[[Path], object]
"""Makes a folder of `ground` bad."""

DELETE = object()


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
    prepare: Prepare = lambda at: None
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


def write(name: str, data: bytes) -> Prepare:
    return lambda at: (at / name).write_bytes(data)


def fifo(name: str) -> Prepare:
    return lambda at: os.mkfifo(at / name)


def link(name: str, target: str) -> Prepare:
    return lambda at: (at / name).symlink_to(target.replace("{at}", str(at)))


def folder(name: str, mode: int = 0o700) -> Prepare:
    def prepare(at: Path) -> None:
        (at / name).mkdir(parents=True)
        (at / name).chmod(mode)

    return prepare


def huge(name: str, size: int = 2**33) -> Prepare:
    def prepare(at: Path) -> None:
        with open(at / name, "wb") as file:
            file.truncate(size)

    return prepare


def owned(name: str, user: int = 65534) -> Prepare:
    return lambda at: os.chown(at / name, user, user)


def both(*steps: Prepare) -> Callable[[Path], object]:
    return lambda at: [step(at) for step in steps]


def damage(path: Path) -> None:
    """Zeros over the pages of a Parquet file; its footer stays."""
    data = bytearray(path.read_bytes())
    footer = int.from_bytes(data[-8:-4], "little")
    end = len(data) - 8 - footer
    data[4:end] = bytes(end - 4)
    path.write_bytes(data)


def replace(path: Path, make: Prepare) -> None:
    path.unlink()
    make(path)


def manifest(name: str, value: object) -> Prepare:
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


def manifests() -> dict[str, Prepare]:
    path = "release/manifest.json"

    def gone(at: Path) -> None:
        (at / path).unlink()

    return {
        "empty": write(path, b""),
        "no JSON": write(path, b"{"),
        "bytes": write(path, b"\xff\xfe\x00"),
        "null": write(path, b"null"),
        "a list": write(path, b"[]"),
        "a number": write(path, b"1"),
        "an empty object": write(path, b"{}"),
        "400 deep": write(path, b'{"schema_version":' * 400 + b"1" + b"}" * 400),
        "100,000 deep": write(path, b"[" * 10**5),
        "a number of 10,000 digits": write(path, b'{"schema_version": ' + b"9" * 10000 + b"}"),
        "8 GiB": both(gone, huge(path)),
        "a fifo": both(gone, fifo(path)),
        "a folder": both(gone, folder(path)),
        "a device": both(gone, link(path, "/dev/zero")),
        "a link to itself": both(gone, link(path, "manifest.json")),
    }


def of_values(verb: str, option: str, values: Iterable[object], *more: str) -> Iterator[Case]:
    for value in values:
        text = str(value)
        shown = text if len(text) < 40 else f"{text[:20]}... of {len(text)}"
        yield Case(verb, f"{option}={shown}", (*more, f"{option}={text}"), (option,))


def missing(verb: str, option: str) -> Case:
    return Case(verb, f"{option} without a value", (option,), (option,))


def special(verb: str, option: str, *more: str) -> Iterator[Case]:
    """Things that are no regular file, or not as large as one of its kind."""
    kinds: dict[str, Prepare] = {
        "a folder": folder("odd"),
        "a fifo": fifo("odd"),
        "a link to itself": link("odd", "odd"),
        "a link to nowhere": link("odd", "{at}/nowhere"),
        "a link to a device": link("odd", "/dev/zero"),
        "8 GiB": huge("odd"),
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


def places(verb: str, option: str, *more: str) -> Iterator[Case]:
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
    yield from of_values(verb, option, paths, *more)
    for title, prepare in {
        "a link to itself": link("odd", "odd"),
        "a link to nowhere": link("odd", "{at}/nowhere"),
        "a link to a file": link("odd", "{at}/key"),
        "a fifo": fifo("odd"),
    }.items():
        yield Case(verb, f"{option} is {title}", (*more, f"{option}={{at}}/odd"), (option,), prepare)
        yield Case(verb, f"{option} is below {title}", (*more, f"{option}={{at}}/odd/x"), (option,), prepare)
