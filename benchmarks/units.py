"""People with many rows: what bounding costs, and what clipping a person's sum would give instead.

    python benchmarks/units.py clipping     # docs/privacy.md, "Why L times"
    python benchmarks/units.py million      # a million rows of one person
    python benchmarks/units.py bad          # ids and options that are none

`clipping` fits a release to public data, makes people of L of its rows each, and takes the norm of
what a person's rows add to each query, over L times the bound of a row, which is charged.  A person's
rows are alike (neighbours), or of one class, or any; "single" is one row over its own bound.  Were
a person's sum clipped, noise could be as much less as a figure is below that of single rows, and the
rows of a person would have to lie side by side in every pass.

`million` releases a million rows of one person and as many of others, and says time and memory.

`bad` tries what people get wrong, and counts: refused in one sentence that names the option or the column
and no id, before anything is made; or released, with the rows set aside that have no id.
"""

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import problems
import pyarrow as pa
import pyarrow.parquet as pq

from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.data.rows import Rows
from dpgmm_beam.fit import chain
from dpgmm_beam.fit.checkpoint import Checkpoint
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy.noise import NoiseKey
from pipelines import cli

ROWS_OF_ONE = 8
PEOPLE = 60
KINDS = ("single", "alike", "one class", "any")


def checkpoints(rows: Rows, classes: int) -> Iterator[tuple[Checkpoint, Rows]]:
    """Before each stage, and all rows in its view."""
    config = ReleaseConfig(
        "precomputed", tuple(map(str, range(classes))), rows.values.shape[1], 8.0, 1e-5, components=4
    )
    secret = NoiseKey(bytes(range(32)))
    current = chain.begin(Plan(config, "people"), secret, 1)
    while current.stages_done < len(current.plan.stages):
        view = current.stage.view
        viewed = rows if view is None else view.of(current.state).bind()(rows)
        yield current, viewed
        summing = chain.Summing(current, secret)
        sums = summing.begin()
        summing.add(viewed, sums)
        current = chain.advance(current, summing.finish(sums), secret)


def people(kind: str, rows: Rows, generator: np.random.Generator) -> np.ndarray:
    """Positions of each one's rows, (PEOPLE, ROWS_OF_ONE), or (PEOPLE, 1) of single ones."""
    first = generator.integers(0, len(rows), PEOPLE)
    if kind == "single":
        return first[:, None]
    if kind == "any":
        return generator.integers(0, len(rows), (PEOPLE, ROWS_OF_ONE))
    found = []
    values = rows.values.astype(np.float64)
    for position in first:
        own = np.flatnonzero(rows.classes == rows.classes[position])
        if kind == "alike":
            own = own[np.argsort(-(values[own] @ values[position]), kind="stable")[:ROWS_OF_ONE]]
        found.append(generator.permutation(own)[:ROWS_OF_ONE])
    return np.array(found)


def clipping(dataset: problems.Dataset, seeds: int) -> None:
    rows, seen = dataset.train, {}
    for before, viewed in checkpoints(rows, len(problems.TEN)):
        stage, add = before.stage, before.stage.adder(before.state)
        for kind in KINDS:
            for seed in range(seeds):
                for own in people(kind, rows, np.random.default_rng(seed)):
                    sums = stage.begin()
                    add(Rows(viewed.values[own], viewed.classes[own]), sums)
                    exact = stage.finish(sums)
                    for query in stage.queries:
                        scale = query.noise_stddevs(1.0) * len(own)
                        norm = float(np.linalg.norm(exact[query.name] / scale))
                        name = f"{stage.mechanism}/{query.name}"
                        seen.setdefault(name, {}).setdefault((kind, seed), []).append(norm)
    print(f"norm of what {ROWS_OF_ONE} rows of a person add, over what is charged: 90% of people are below")
    print(f"{'mechanism':<18}" + "".join(f"{kind:>20}" for kind in KINDS))
    for name, found in seen.items():
        cells = []
        for kind in KINDS:
            each = [np.quantile(found[kind, seed], 0.9) for seed in range(seeds)]
            cells.append(f"{np.mean(each):.2f} ({min(each):.2f}-{max(each):.2f})")
        print(f"{name:<18}" + "".join(f"{cell:>20}" for cell in cells))


def million(rows: int, dimension: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        generator = np.random.default_rng(0)
        os.mkdir(f"{folder}/in")
        for number in range(8):
            values = generator.standard_normal((rows // 4, dimension), np.float32)
            ids = (
                np.full(rows // 4, "one")
                if number % 2
                else generator.integers(0, rows // 8, rows // 4).astype(str)
            )
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), dimension)
            labels = generator.choice(["a", "b"], rows // 4)
            table = pa.table({"embedding": vectors, "label": labels, "patient": ids})
            pq.write_table(table, f"{folder}/in/{number}.parquet", row_group_size=50_000)
        plain = ["--classes", "a,b", "--encoder", "precomputed", "--epsilon", "1", "--delta", "1e-9"]
        plain += ["--components", "1", "--samples-per-class", "100", "--input", f"{folder}/in", "--quiet"]
        of_people = ["--privacy-unit-column", "patient", "--max-rows-per-unit", "4"]
        for name, options in (("rows", []), ("people", of_people)):
            start = time.perf_counter()
            output = ["--output", f"{folder}/{name}", "--private-dir", f"{folder}/private-{name}"]
            job = subprocess.Popen(
                [sys.executable, "-m", "dpgmm_beam", "release", *plain, *options, *output],
                env={**os.environ, "PYTHONPATH": os.getcwd()},
            )
            _, status, used = os.wait4(job.pid, 0)
            assert status == 0
            most = used.ru_maxrss / 2**10
            print(
                f"{2 * rows:,} rows, the unit are {name}: {time.perf_counter() - start:.0f} s, {most:.0f} MiB"
            )


SECRET_ID = "anna.secret"


def _table(ids: pa.Array) -> pa.Table:
    generator = np.random.default_rng(0)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(generator.standard_normal(8 * len(ids))), 8)
    return pa.table({"embedding": vectors, "label": ["a", "b"] * (len(ids) // 2), "patient": ids})


def bad_ids() -> dict[str, pa.Array]:
    """Columns of 40 ids by what is wrong with them."""
    text = [SECRET_ID if number % 2 else f"{SECRET_ID}.{number}" for number in range(40)]
    return {
        "nulls among them": pa.array([None if number % 3 else each for number, each in enumerate(text)]),
        "all null": pa.nulls(40, pa.string()),
        "null, of no type": pa.nulls(40),
        "all empty": pa.array([""] * 40),
        "all of one": pa.array([SECRET_ID] * 40),
        "of a megabyte": pa.array([f"{number % 4}" * 2**20 for number in range(40)]),
        "no text in UTF-8": pa.array([b"\xff\xfe" + bytes([number % 3]) for number in range(40)]),
        "two ways of Unicode": pa.array(["\u00e9", "e\u0301"] * 20),
        "integers": pa.array(range(40)),
        "negative integers": pa.array([-(number % 5) for number in range(40)], pa.int8()),
        "largest integers": pa.array([2**64 - 1 - number % 3 for number in range(40)], pa.uint64()),
        "bytes of one length": pa.array([bytes([number % 6] * 16) for number in range(40)], pa.binary(16)),
        "dictionaries": pa.array(text).dictionary_encode(),
        "floats": pa.array([number / 2 for number in range(40)]),
        "floats for integers with gaps": pa.array(
            [float(number) if number % 3 else None for number in range(40)]
        ),
        "truth": pa.array([True, False] * 20),
        "dates": pa.array(range(40), pa.date32()),
        "times": pa.array(range(40), pa.timestamp("us")),
        "structs": pa.array([{"id": each} for each in text]),
        "lists": pa.array([[each] for each in text]),
        "decimals": pa.array(range(40)).cast(pa.decimal128(20, 0)),
    }


def bad_options() -> list[list[str]]:
    column = ["--privacy-unit-column", "patient"]
    bounds = ["0", "-1", "1025", "1e9", "1.5", "two", ""]
    slices = ["0/2", "3/2", "2", "1/4097", "a/b", "1/2/3", "", "1/0"]
    return [
        column,
        ["--max-rows-per-unit", "4"],
        ["--max-rows-per-unit", "auto"],
        *([*column, "--max-rows-per-unit", each] for each in bounds),
        *([*column, "--max-rows-per-unit", "4", "--slice", each] for each in slices),
        ["--slice", "1/2"],
        [*column, "--max-rows-per-unit", "4", "--adjacency", "swap"],
        [*column, "--max-rows-per-unit", "4", "--privacy-unit-level", "1"],
        *(["--privacy-unit-level", each, "--max-rows-per-unit", "4"] for each in ("0", "1", "-1", "65", "x")),
        *(
            ["--privacy-unit-column", each, "--max-rows-per-unit", "4"]
            for each in ("nobody", "embedding", "pati")
        ),
    ]


def bad() -> None:
    counts = {"refused": 0, "released": 0, "wrong": 0}
    common = ["--encoder", "precomputed", "--classes", "a,b", "--epsilon", "8", "--delta", "1e-6"]
    common += ["--components", "1", "--samples-per-class", "2", "--dimension", "8"]
    bound = ["--privacy-unit-column", "patient", "--max-rows-per-unit", "2"]
    with tempfile.TemporaryDirectory() as folder:
        cases = [(f"options {' '.join(each)}", pa.array(["x"] * 40), each) for each in bad_options()]
        cases += [(f"ids: {name}", ids, bound) for name, ids in bad_ids().items()]
        for number, (name, ids, options) in enumerate(cases):
            place = f"{folder}/{number}"
            os.mkdir(place)
            pq.write_table(_table(ids), f"{place}/rows.parquet")
            files = [
                "--input",
                f"{place}/rows.parquet",
                "--output",
                f"{place}/out",
                "--private-dir",
                f"{place}/p",
            ]
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                try:
                    status = cli.main(["release", *common, *files, *options])
                except SystemExit as error:
                    status = error.code
            text = said.getvalue()
            refused = status == 2 and len(text.strip().splitlines()) == 1 and not os.path.exists(f"{place}/p")
            outcome = "refused" if refused else "released" if status == 0 else "wrong"
            if SECRET_ID in text or "Traceback" in text or "nan" in text.lower().split():
                outcome = "wrong"
            counts[outcome] += 1
            print(f"{outcome:<9} {name}" + (f": {text.strip()[:300]}" if outcome == "wrong" else ""))
    print(f"{len(cases)} tried: " + ", ".join(f"{count} {outcome}" for outcome, count in counts.items()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("clipping", "million", "bad"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", default="work", help="folder for embeddings of MNIST-5k")
    parser.add_argument("--rows", type=int, default=10**6, help="of one person")
    parser.add_argument("--dimension", type=int, default=64)
    known = parser.parse_args()
    if known.what == "bad":
        bad()
        return
    if known.what == "million":
        million(known.rows, known.dimension)
        return
    for name, load in (("digits", problems.digits), ("MNIST-5k", lambda: problems.mnist_5k(known.work))):
        print(f"\n{name}: {problems.ABOUT[name]}")
        clipping(load(), known.seeds)


if __name__ == "__main__":
    main()
