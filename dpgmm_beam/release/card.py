"""The card of a release, its README.md: what it is and may be used for, in plain words.

It is a function of the configuration and the release id alone, so `dpgmm verify` holds it
against them: a card can't promise what was not done.  Its first lines are what
Hugging Face's `datasets` reads: which files are rows.
"""

import math

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.errors import printable
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy.neighbours import REPLACE_ONE, Neighbours
from dpgmm_beam.privacy.tradeoff import in_words, operational
from dpgmm_beam.release.class_rows import CLASSES_FILE, count_stddev

CARD_FILE = "README.md"

_NAMED = 20
_PLAIN_EPSILON = 10.0

_CARD = """\
---
configs:
- config_name: default
  data_files: synthetic/*.parquet
tags:
- differential-privacy
- synthetic
- embeddings
---

# Synthetic embeddings under differential privacy

{rows:,} synthetic image embeddings of {dimension} numbers in {classes}, drawn from a model that was
fitted to private, labelled images. No row stands for an image. Release {release_id}, encoder
{encoder}, made by dpgmm-beam.

## Privacy

This whole folder is (epsilon, delta)-differentially private with epsilon = {epsilon:.12g} and
delta = {delta:.12g}, for {relation}.

- **What that means.** {meaning}
{unit}
- **Releases add up.** This one has spent its own epsilon and delta; another release of the same
  images spends more.
- **What is made of it is covered, too**: more rows from the model, a network that is trained on it,
  plots. None of that costs anything more.
- **Public besides**: the names of the classes and the other options in `manifest.json`. How many
  images there were of each class is told with noise of standard deviation {stddev:.3g} only, in
  `mixture/{classes_file}`.
- **Not covered**: an encoder that was itself trained on these images.

`manifest.json` states where the budget went. `dpgmm verify --release FOLDER` composes it again with
an independent accountant and checks every file, this one, too.

## Columns of `synthetic/*.parquet`

| column | type | what it is |
|---|---|---|
| `label` | string | the likeliest class by the private teacher: the largest of `label_probabilities` |
| `embedding` | {dimension} x float32 | the synthetic embedding; {norm} |
| `label_probabilities` | {count} x float32 | the teacher's probability of each class, in the order below |
| `component_class` | string | the class in whose mixture the row was drawn; no label, for classes overlap |
| `component` | int32 | which component of that class, from 0 |

Classes, in order: {names}.

{norm_advice}

The classes take turns, so `component_class` is balanced; shares of the real classes are in
`mixture/components.parquet`. The metadata of each file's schema, key `dpgmm`, has all that training
needs.

## Use

```python
from datasets import load_dataset

rows = load_dataset("FOLDER", split="train")
```

`pandas.read_parquet("FOLDER/synthetic")`, `polars.read_parquet("FOLDER/synthetic/*.parquet")` and
DuckDB's `SELECT * FROM 'FOLDER/synthetic/*.parquet'` read it as well. `label_probabilities` are the
better target to train on: cross-entropy with them, or with their fourth roots brought back to a sum
of 1, which says more of the unlikely classes.

    dpgmm train  --synthetic FOLDER --test REAL.parquet --output NETWORK
    dpgmm sample --release FOLDER --rows 100000 --output MORE
{decode}
`synthetic/` alone trains the same network; `mixture/` holds the model and the teacher that more rows
are drawn from.
"""

_DECODE = "    dpgmm decode --release FOLDER --decoder private_linear --output PICTURES\n"


def card(plan: Plan) -> bytes:
    """The text of README.md, in UTF-8; the same plan gives the same bytes."""
    config, stddev = plan.config, count_stddev(plan)
    count = len(config.classes)
    names = ", ".join(map(_code, config.classes[:_NAMED]))
    if count > _NAMED:
        names += f" and {count - _NAMED} more, which `mixture/{CLASSES_FILE}` lists"
    return _CARD.format(
        rows=count * config.samples_per_class,
        dimension=config.dimension,
        classes=f"{count:,} classes" if count > 1 else "one class",
        release_id=_code(plan.release_id),
        encoder=_code(config.encoder),
        epsilon=config.epsilon,
        delta=config.delta,
        relation=_relation(config.neighbours),
        unit=_unit(config),
        meaning=_meaning(plan),
        stddev=stddev,
        classes_file=CLASSES_FILE,
        count=count,
        names=names,
        decode="" if config.decodable is None else _DECODE,
        **_norm(config),
    ).encode()


def _relation(neighbours: Neighbours) -> str:
    what = "one image with its label"
    if neighbours.max_rows_per_unit is not None:
        what = "one person with all images and labels"
    replaced = neighbours.adjacency == REPLACE_ONE
    return f"replacing {what} by another" if replaced else f"adding or removing {what}"


def _unit(config: ReleaseConfig) -> str:
    if config.max_rows_per_unit is None:
        return (
            "- **The unit is one image.** Somebody who is in m of the images is protected less: as by a"
            " release\n  whose noise is m times smaller."
        )
    sliced = ""
    if config.bound_found:
        sliced = (
            " (How many was found from\n  noisy numbers of people by their images, for which epsilon has"
            " paid, too.)"
        )
    if config.slice is not None:
        number, _, count = config.slice.partition("/")
        sliced += (
            f" Only people of slice\n  {config.slice} were: part {number} of {count}, into which ids fall by"
            " their hashes."
        )
    return (
        "- **The unit is a person**: all images of one id, whatever their number and classes. At most\n"
        f"  {config.max_rows_per_unit:,} of them were used, chosen at random; images without an id"
        f" were not.{sliced}"
    )


def _meaning(plan: Plan) -> str:
    config, neighbours = plan.config, plan.config.neighbours
    sure = f"up to a chance of {config.delta:.3g}, in which nothing is promised"
    if config.epsilon > _PLAIN_EPSILON:
        return (
            f"Hardly anything by itself: at an epsilon above {_PLAIN_EPSILON:g} the bound on what the"
            f" release tells of one {neighbours.noun} is too weak to be put into words ({sure})."
        )
    guess, *_ = in_words(operational(plan.budget.noise_multiplier), neighbours)
    other = " in the place of another" if neighbours.adjacency == REPLACE_ONE else ""
    return (
        "Whatever somebody does with this folder, and whatever else they know, each outcome is at most"
        f" {_up(math.exp(config.epsilon), 100):.12g} times as likely as it would have been"
        f" {'with' if other else 'without'} any one {neighbours.noun}{other}, or the other"
        f" way round ({sure}). {guess}"
    )


def _up(value: float, steps: int) -> float:
    """The value, rounded up: what is called a bound is one."""
    return math.ceil(steps * value) / steps


def _norm(config: ReleaseConfig) -> dict[str, str]:
    same = "before they meet these. (`dpgmm train` does, and its network does so itself.)"
    if config.clip_norm is None:
        advice = "**Every embedding has norm 1.** Encoders give other norms: divide real embeddings by theirs"
        return {"norm": "its norm is 1", "norm_advice": f"{advice} {same}"}
    most = f"{config.clip_norm:.12g}"
    advice = f"**No embedding is longer than {most}.** Shorten longer real ones to it"
    return {"norm": f"its norm is at most {most}", "norm_advice": f"{advice} {same}"}


def _code(text: str) -> str:
    """A user's text, such that it stays text in Markdown."""
    return "`" + printable(text).replace("`", "'") + "`"
