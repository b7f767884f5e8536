"""People with many rows: what bounding costs, and what clipping a person's sum would give instead.

    python benchmarks/units.py clipping     # docs/privacy.md, "Why L times"
    python benchmarks/units.py million      # a million rows of one person

`clipping` fits a release to public data, makes people of L of its rows each, and takes the norm of
what a person's rows add to each query, over L times the bound of a row, which is charged.  A person's
rows are alike (neighbours), or of one class, or any; "single" is one row over its own bound.  Were
a person's sum clipped, noise could be as much less as a figure is below that of single rows, and the
rows of a person would have to lie side by side in every pass.

`million` releases a million rows of one person and as many of others, and says time and memory.
"""

import argparse
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("clipping", "million"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", default="work", help="folder for embeddings of MNIST-5k")
    parser.add_argument("--rows", type=int, default=10**6, help="of one person")
    parser.add_argument("--dimension", type=int, default=64)
    known = parser.parse_args()
    if known.what == "million":
        million(known.rows, known.dimension)
        return
    for name, load in (("digits", problems.digits), ("MNIST-5k", lambda: problems.mnist_5k(known.work))):
        print(f"\n{name}: {problems.ABOUT[name]}")
        clipping(load(), known.seeds)


if __name__ == "__main__":
    main()
