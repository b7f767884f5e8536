"""dpgmm inspect: what an input holds, for its owner's eyes.

(A module `inspect` here would stand in the place of Python's own for whoever
runs another file of this folder.)
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.data import images
from dpgmm_beam.data.survey import LabelCounts, LabelSurvey, UnitCounts, compare
from dpgmm_beam.encoders import registry
from dpgmm_beam.encoders.preparation import Preparation
from dpgmm_beam.errors import ConfigError, printable
from pipelines import cli, paths
from pipelines.classes import read_classes
from pipelines.columns import columns_of
from pipelines.parsers.inspect import parser
from pipelines.progress import Progress
from transforms.execution import MAX_THREADS
from transforms.files.columns import Columns
from transforms.files.inputs import InputDescription, describe_input
from transforms.survey import Cost, Found, Named, cost, look

__all__ = ["main", "parser"]

_PLAIN = "efficientnet_lite0"
"""Whose name stands for any encoder's where none is given: none is loaded."""

_SHOWN_LABELS = 50

_PARTS = 1000
"""Of progress."""


def main(argv: Sequence[str]) -> int:
    known = parser().parse_args(argv)
    paths.check_path("--input", known.input)
    if not 0 <= known.threads <= MAX_THREADS:
        raise ConfigError("--threads", known.threads, f"be a whole number from 0 to {MAX_THREADS}")
    if known.names < 0:
        raise ConfigError("--names", known.names, "be a whole number, 0 or more")
    if known.encoder is not None:
        registry.check_encoder(known.encoder)
    classes = read_classes(known.classes) if known.classes is not None else ()
    description = _described(known.input, known.encoder, known.dimension, columns_of(known))
    embeddings = description.holds_embeddings
    encoder = None
    if known.encoder is not None and not embeddings:
        encoder = registry.encoder_for_process(known.encoder)
    cores = len(os.sched_getaffinity(0))
    seen = [0]
    with Progress("looking", _PARTS, lambda: seen[0]):
        found = look(
            description,
            known.encoder or _PLAIN,
            LabelCounts(known=frozenset(classes)),
            known.decode,
            Preparation(encoder).side if encoder else images.LEAST_SIDE,
            known.threads or cores,
            lambda part: seen.__setitem__(0, int(part * _PARTS)),
        )
    survey = compare(found.labels, classes) if classes and description.labelled else None
    rows = sum(survey.classes.values()) if survey else found.good
    dimension = description.dimension or (encoder.dimension if encoder else None)
    price = (
        cost(
            rows,
            dimension,
            len(classes) or max(1, len(found.labels.rows)),
            cores,
            ReleaseConfig.samples_per_class,
            embedded=not embeddings,
        )
        if dimension
        else None
    )
    speed = _images_a_second(encoder) * cores if encoder else None
    for line in lines(description, found, survey, price, speed, known.names, known.decode):
        cli.say(line)
    cli.report(
        "Nothing of this was written anywhere; it is PRIVATE.",
        input=description.pattern,
        kind=description.kind,
        labelled=description.labelled,
        dimension=dimension,
        decoded=known.decode,
        found=found.to_json(),
        **({"labels": survey.to_json()} if survey else {}),
        **({"release": {"rows": rows, "seconds": price.seconds, "disk": price.disk}} if price else {}),
        **({"images_a_second": round(speed)} if speed else {}),
    )
    return 0


def _described(
    pattern: str, encoder: str | None, dimension: int | None, columns: Columns
) -> InputDescription:
    """What an input is; where no encoder is given, images or embeddings alike."""
    if encoder is not None:
        return describe_input(pattern, encoder, dimension, columns)
    try:
        return describe_input(pattern, _PLAIN, dimension, columns)
    except ConfigError as error:
        # Of embeddings; an empty folder is one without images.
        if error.argument not in ("encoder", "dimension"):
            raise
        return describe_input(pattern, "precomputed", dimension, columns)


def _images_a_second(encoder: registry.Encoder) -> float:
    """Of one thread of this machine, measured: the network only, which takes most of the time."""
    side = Preparation(encoder).side
    batch = np.zeros((encoder.batch_size, side, side, 3), np.uint8)
    with encoder.session():
        encoder.embed(batch)
        start = time.perf_counter()
        encoder.embed(batch)
        return encoder.batch_size / max(time.perf_counter() - start, 1e-6)


def lines(
    description: InputDescription,
    found: Found,
    survey: LabelSurvey | None,
    price: Cost | None,
    speed: float | None,
    names: int,
    decoded: bool,
) -> Iterator[str]:
    """What is printed, line by line."""
    yield "FOR THE OWNER'S EYES: exact facts about private data."
    yield ""
    yield f"input       {description.pattern}"
    what = "embedding" if description.holds_embeddings else "image"
    size = f", {_bytes(found.size)}" if found.size else ""
    labelled = "with" if description.labelled else "no"
    yield f"layout      {description.kind.replace('_', ' ')}, {labelled} labels"
    yield f"found       {_many(found.rows, what)}{size}; {found.good:,} of them good as far as was looked"
    if found.formats:
        yield f"formats     {_counts(found.formats)}"
    if found.smallest and found.largest:
        least, most = ("{} x {}".format(*size) for size in (found.smallest, found.largest))
        yield f"sizes       {least if least == most else f'{least} to {most}'} pixels"
    if description.dimension:
        yield f"dimension   {description.dimension:,}"
    if not decoded:
        read = "labels" if description.holds_embeddings else "headers"
        yield f"looked at   {read} only; --decode finds what is wrong behind them"
    yield from _named("set aside", "rows that are none", found.rejected, names)
    yield from _named("passed over", "in the input, and no rows", found.passed_over, names)
    yield from _named("to know", "of good rows", found.notes, names)
    yield ""
    if survey is None:
        if description.labelled:
            yield f"labels      {_many(len(found.labels.rows), 'label')}; give --classes to compare them"
            yield from _rows(found.labels.rows)
            yield from _unnamed(found.labels)
        else:
            yield f"labels      none: declare one class, which has {_many(found.good, 'row')}"
    else:
        yield f"classes     {len(survey.classes):,} declared, in {_many(sum(survey.classes.values()), 'row')}"
        yield from _rows(survey.classes)
        yield from _survey(survey)
    if found.units is not None:
        yield from _units(found.units)
    if price:
        yield ""
        then = "" if description.holds_embeddings else " once they are embedded"
        yield (
            f"a release   {_many(price.rows, 'row')}, {_bytes(price.disk)} in the private folder while it"
            f" runs, about {_seconds(price.seconds)}{then} (docs/scale.md)"
        )
    if speed and found.good:
        took = _seconds(found.good / speed)
        yield f"embedding   {took} at {speed:,.0f} images/s (measured), decoding apart"
    yield ""


def _units(units: UnitCounts) -> Iterator[str]:
    yield ""
    yield f"units       {len(units.rows):,} people (ids); {units.null:,} rows without an id are set aside"
    if not units.rows:
        return
    shown = ", ".join(f"{name} {count:,}" for name, count in units.quantiles().items())
    yield f"  rows of each: {shown}"
    for most, (rows, beyond) in units.bounds().items():
        yield (
            f"  --max-rows-per-unit {most}: {rows:.1%} of their rows count, {beyond:.1%} of them have more;"
            f" noise {most} times that of single rows"
        )
    yield "  a bound that is chosen by these figures tells of them: choose by what is known of such data"


def _survey(survey: LabelSurvey) -> Iterator[str]:
    if survey.missing:
        shown = ", ".join(repr(printable(label)) for label in survey.missing[:_SHOWN_LABELS])
        yield f"WITHOUT A ROW: {shown}{_and_more(len(survey.missing))}. Each of these is released as noise"
    undeclared = survey.undeclared
    if undeclared.total:
        yield f"NOT DECLARED: {_many(undeclared.total, 'row')}, which a release sets aside"
        yield from _rows(undeclared.rows)
        yield from _unnamed(undeclared)
    for match in survey.near[:_SHOWN_LABELS]:
        label, declared = printable(match.label), printable(match.declared)
        yield f"  {label!r} may be meant to be {declared!r}: {match.difference}"


def _rows(rows: Mapping[str, int]) -> Iterator[str]:
    shown = list(rows.items())[:_SHOWN_LABELS]
    width = max((len(repr(printable(label))) for label, _ in shown), default=0)
    for label, count in shown:
        # In quotes, so that a blank at an end is seen.
        yield f"  {printable(label)!r:<{width}}  {count:,}"
    if len(rows) > _SHOWN_LABELS:
        yield f"  {len(rows) - _SHOWN_LABELS:,} more (--json has them)"


def _unnamed(labels: LabelCounts) -> Iterator[str]:
    if labels.null:
        yield f"  null: {labels.null:,}"
    if labels.others:
        yield f"  rows of other labels, which are too many to count one by one: {labels.others:,}"


def _named(title: str, meaning: str, named: Named, most: int) -> Iterator[str]:
    if not named.counts:
        return
    yield f"{title:<12}{named.counts.total():,} ({meaning}): {_counts(named.counts)}"
    for source, said in named.examples[:most]:
        yield f"  {printable(source, 300)}: {said}"
    if named.counts.total() > most and named.examples:
        more = named.counts.total() - min(most, len(named.examples))
        yield f"  {more:,} more (--names N or --json tells them)"


def _many(count: int, what: str) -> str:
    """
    >>> _many(1, "row"), _many(2000, "row")
    ('1 row', '2,000 rows')
    """
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _counts(counts: Mapping[str, int]) -> str:
    ordered: Iterable[tuple[str, int]] = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {name}" for name, count in ordered)


def _and_more(count: int) -> str:
    return f" and {count - _SHOWN_LABELS:,} more" if count > _SHOWN_LABELS else ""


def _bytes(size: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
