"""Decoded pictures of a release: what they are made from, their manifest and their card.

Decoding looks at nothing but the release and public things, so it is post-processing:
the guarantee of the release holds for the pictures, and nothing is spent.
"""

import dataclasses
import enum
import hashlib
import importlib.metadata
import json
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

import dpgmm_beam
from dpgmm_beam.errors import printable
from dpgmm_beam.release import manifest
from dpgmm_beam.release.card import CARD_FILE
from dpgmm_beam.release.folder_names import folder_names
from dpgmm_beam.release.manifest import Measure
from dpgmm_beam.release.picture_files import IMAGES, SHEET_FILE, Format
from dpgmm_beam.release.synthesis import Parts

VERSION = 1
"""Rises with what a manifest of decoded pictures states, and with the words of its card."""

_PACKAGES = ("diffusers", "numpy", "open_clip_torch", "pillow", "pyarrow", "torch")

MAX_PICTURES = 10**8
MAX_FILES = 200_000
"""Pictures that are files of their own, of which each has its entry in the manifest."""


class Labels(enum.StrEnum):
    """What pictures are labelled by."""

    TEACHER = "teacher"
    DRAWN = "drawn"


@dataclasses.dataclass(frozen=True)
class Piece:
    """Pictures that are made and written together.

    Attributes:
      number: of the piece, from 0.
      part: of the draw, in which they are; see `Parts`.
      start, stop: which rows of that part.
      first: number of the first of them in the whole draw.
    """

    number: int
    part: int
    start: int
    stop: int
    first: int


@dataclasses.dataclass(frozen=True)
class Decoding:
    """All that decoded pictures are a function of; it goes with the job and into their manifest.

    Attributes:
      release_sha256: of the release's manifest.
      decoder: spec, without paths.
      decoder_fingerprint: what tells its weights from others of that spec.
      encoder: spec of the encoder that the embeddings are of.
      encoder_stated: whether who decodes has said so, because the release names it otherwise.
      images_per_class: pictures drawn in the mixture of each class.
      seed: of the draw and of the decoder.
      format: of the files.
      labels: whose word `label` is: the teacher's likeliest class, or the class that was drawn.
      classes: of the release.
      piece_images: pictures of a piece, at most.
      label_release_sha256: of the manifest of another release, whose teacher labels the pictures; "" where
        the release's own labels the embeddings.
    """

    release_sha256: str
    decoder: str
    decoder_fingerprint: str
    encoder: str
    encoder_stated: bool
    images_per_class: int
    seed: int
    format: Format
    labels: Labels
    classes: tuple[str, ...]
    piece_images: int
    label_release_sha256: str = ""

    @property
    def pictures(self) -> int:
        """How many, in all."""
        return self.images_per_class * len(self.classes)

    @property
    def _parts(self) -> Parts:
        return Parts(len(self.classes), self.pictures)

    @property
    def _pieces_of_part(self) -> int:
        return -(-self._parts.part_rows // self.piece_images)

    @property
    def pieces(self) -> int:
        """How many there are."""
        last = len(self._parts) - 1
        return last * self._pieces_of_part - (-self._parts.rows_of(last) // self.piece_images)

    def piece(self, number: int) -> Piece:
        """The piece of a number, from 0; they follow each other as rows do."""
        part, within = divmod(number, self._pieces_of_part)
        start = within * self.piece_images
        stop = min(start + self.piece_images, self._parts.rows_of(part))
        return Piece(number, part, start, stop, part * self._parts.part_rows + start)

    def statement(self) -> dict[str, Any]:
        """What the manifest says of it."""
        content = dataclasses.asdict(self)
        for name in ("release_sha256", "classes", "piece_images", "label_release_sha256"):
            del content[name]
        return content

    @property
    def digest(self) -> str:
        """SHA-256, hexadecimal, also of the versions that bits depend on: names what is made."""
        content = {**dataclasses.asdict(self), "version": VERSION, "versions": _versions()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def generator_of_picture(seed: int, number: int) -> np.random.Generator:
    """What a decoder draws a picture's randomness from; nothing else in a draw of this seed uses it."""
    # Parts of a draw are seeded by two numbers, pictures by three.
    return np.random.Generator(np.random.PCG64DXSM(np.random.SeedSequence([seed, number, 1])))


def build(
    decoding: Decoding,
    release: dict[str, Any],
    files: Sequence[dict],
    label_release: dict[str, Any] | None = None,
) -> bytes:
    """The manifest's bytes.

    Args:
      decoding: of the pictures.
      release: the release's manifest.
      files: path, size, sha256 and rows (pictures) of every other file.
      label_release: manifest of the release whose teacher labels the pictures, if there is one.
    """
    content = {
        "decoded_version": VERSION,
        "digest": decoding.digest,
        "decoding": decoding.statement(),
        "folders": _folders(decoding.classes) if decoding.format == Format.PNG else {},
        "release": _stated(release, decoding.release_sha256),
        "versions": _versions(),
        "files": sorted(files, key=lambda file: file["path"]),
    }
    if label_release is not None:
        content["label_release"] = _stated(label_release, decoding.label_release_sha256)
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _stated(release: dict[str, Any], sha256: str) -> dict[str, Any]:
    return {"manifest_sha256": sha256, **{name: release[name] for name in _STATED}}


_STATED = ("schema_version", "release_id", "config", "config_digest", "fit_digest", "privacy")


def _folders(classes: Sequence[str]) -> dict[str, str]:
    return {f"{IMAGES}/{name}": label for name, label in zip(folder_names(classes), classes, strict=True)}


def _versions() -> dict[str, str]:
    found = {"dpgmm-beam": dpgmm_beam.__version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


_CARD = """\
# Synthetic pictures under differential privacy

{pictures:,} pictures in {classes}, decoded from embeddings that were drawn from release {release_id}, a
model that was fitted to private, labelled images. No picture stands for an image.

## Privacy

The release is (epsilon, delta)-differentially private with epsilon = {epsilon:.12g} and
delta = {delta:.12g}: {adjacency}, which is {unit}. These pictures were made from it
and from public things alone, so the same holds for them, and they have spent nothing more.

- **What that means.** Somebody who knows everything else and is told with even odds whether one unit
  was in guesses right at most {guesses:.12g} times in 100.{both}
- **Releases add up**: another release of the same images spends more.
- **What a picture shows is the decoder's word as much as the data's.** The decoder, {decoder}, was
  {made}

## Files

- `{images}/`: {layout}
- `{sheet}`: the first pictures of each class.
- `manifest.json`: the release's statement of its privacy, the decoder with its fingerprint, the
  seed, and a digest of each file; `dpgmm verify --release FOLDER` checks them.

{labels}
"""

_BOTH = """
- **The labels come from another release**, {label_release}, of epsilon = {epsilon:.12g} and
  delta = {delta:.12g}. Where both are of the same images, together they have spent at most the sums of
  both; the {guesses:.12g} times in 100 are of both together."""

_MADE = {
    "dct": "not fitted to the private images at all: it is the inverse of the encoder.",
    "private_linear": "fitted to the private images by the release itself, which has paid for it: it is in\n"
    "  its files, and under its epsilon and delta.",
}

_FOREIGN = (
    "not fitted to the private images; what an embedding does not\n"
    "  say it takes from the pictures that it was made from."
)

_LABELS = {
    Labels.TEACHER: "`label` is the likeliest class by the release's private teacher, which has seen the\n"
    "embedding and not the picture. {count:,} pictures were drawn in the mixture of each class, so labels\n"
    "are not quite so many each.",
    Labels.DRAWN: "`label` is the class in whose mixture a picture was drawn, {count:,} of each; it may\n"
    "look like another's.",
}

_LOOKED_AT = (
    "`label` is the likeliest class by the private teacher of the other release, which has looked at the\n"
    "picture. {count:,} pictures were drawn in the mixture of each class, so labels are not quite so many\n"
    "each."
)

_LAYOUTS = {
    Format.PNG: "a folder for each label, `NUMBER.png` in it; a label that makes no name of a folder is\n"
    "  written another way, and `folders` in `manifest.json` says which is which.",
    Format.PARQUET: "Parquet with `label`, `image` (PNG), `label_probabilities` (in the order of the\n"
    "  classes), `component_class` and `component` (where it was drawn: no label).",
    Format.WEBDATASET: "tars of WebDataset: `NUMBER.png`, and `NUMBER.json` with `label`,\n"
    "  `label_probabilities` (in the order of the classes), `component_class` and `component` (where it\n"
    "  was drawn: no label).",
}


def card(decoding: Decoding, release: dict[str, Any], label_release: dict[str, Any] | None = None) -> bytes:
    """The text of README.md, in UTF-8.

    Args:
      release, label_release: manifests, as in `build`.
    """
    plan = manifest.plan_of(release)
    count = len(decoding.classes)
    mus = [each["privacy"]["operational"]["mu"] for each in (release, label_release) if each is not None]
    # Gaussian mechanisms compose so.  Rounded up: what is called a bound is one.
    guesses = math.ceil(500 * (1 + math.erf(math.hypot(*mus) / math.sqrt(8)))) / 10
    labels, both = _LABELS[decoding.labels], ""
    if label_release is not None:
        labels = _LOOKED_AT if decoding.labels == Labels.TEACHER else labels
        both = _BOTH.format(
            label_release=_code(str(label_release["release_id"])),
            epsilon=label_release["privacy"]["epsilon"],
            delta=label_release["privacy"]["delta"],
            guesses=guesses,
        )
    return _CARD.format(
        pictures=decoding.pictures,
        classes=f"{count:,} classes" if count > 1 else "one class",
        release_id=_code(plan.release_id),
        epsilon=plan.config.epsilon,
        delta=plan.config.delta,
        adjacency=release["privacy"]["adjacency"],
        unit=release["privacy"]["privacy_unit"],
        guesses=guesses,
        both=both,
        decoder=_code(decoding.decoder),
        made=_MADE.get(decoding.decoder.partition(":")[0], _FOREIGN),
        images=IMAGES,
        layout=_LAYOUTS[decoding.format],
        sheet=SHEET_FILE,
        labels=labels.format(count=decoding.images_per_class),
    ).encode()


def _code(text: str) -> str:
    return "`" + printable(text).replace("`", "'") + "`"


def parse(data: bytes) -> dict[str, Any] | None:
    """The content of a manifest of decoded pictures, of any version; None of anything else."""
    try:
        content = json.loads(data)
    except (RecursionError, ValueError):
        return None
    return content if isinstance(content, dict) and "decoded_version" in content else None


def check(content: dict[str, Any], present: Collection[str], measure: Measure) -> list[str]:
    """What is wrong with a folder of decoded pictures, each in a sentence; empty when all holds.

    The statement of the release must follow from its configuration, its event compose to no more
    than (epsilon, delta), the card say what follows, and the files be those that are named.

    Args:
      content: the parsed manifest.
      present: paths of the files that are there, the manifest's own left out.
      measure: size and SHA-256 of a file by its path.
    """
    if content.get("decoded_version") != VERSION:
        return [f"the manifest is of version {content.get('decoded_version')!r}, not {VERSION}"]
    release, stated = content.get("release"), content.get("decoding")
    if not isinstance(release, dict) or not isinstance(stated, dict):
        return ["the manifest does not say of which release the pictures are"]
    label_release = content.get("label_release")
    problems: list[str] = []
    for each in (release, *(() if label_release is None else (label_release,))):
        if not isinstance(each, dict):
            return ["the manifest does not say of which release the labels are"]
        others = {name: value for name, value in each.items() if name != "manifest_sha256"}
        problems += manifest.check_statement({**others, "versions": {}})
    if problems:
        return problems
    try:
        config = manifest.plan_of(release).config
        decoding = Decoding(
            **{**stated, "format": Format(stated["format"]), "labels": Labels(stated["labels"])},
            release_sha256=str(release.get("manifest_sha256")),
            classes=config.classes,
            piece_images=1,
        )
        text = card(decoding, release, label_release)
        listed = {str(file["path"]): int(file["rows"]) for file in content["files"]}
        sha256 = {file["path"]: file["sha256"] for file in content["files"]}
        named = not decoding.encoder_stated and decoding.encoder != config.encoder
        pictures = {path: rows for path, rows in listed.items() if path.startswith(f"{IMAGES}/")}
        counted = decoding.pictures
    except (AttributeError, KeyError, TypeError, ValueError):
        return ["the manifest is malformed"]
    if named:
        problems.append("encoder is not the release's")
    if content.get("folders") != (_folders(config.classes) if decoding.format == Format.PNG else {}):
        problems.append("folders is not what follows from the classes")
    if listed.keys() - pictures.keys() != {CARD_FILE, SHEET_FILE}:
        problems.append("the manifest names files that are no pictures")
    if sum(pictures.values()) != counted:
        problems.append("the files do not have as many pictures as are stated")
    # Only what lies in the folder is looked at, whatever a manifest may name.
    problems += [f"{path} is missing" for path in sorted(listed.keys() - set(present))]
    there = [file for file in content["files"] if file["path"] in present]
    due = {path: rows for path, rows in listed.items() if path in present}
    problems += manifest.check_files(there, due, present, measure)
    if sha256.get(CARD_FILE) != hashlib.sha256(text).hexdigest():
        problems.append(f"{CARD_FILE} is not what follows from the manifest")
    return problems
