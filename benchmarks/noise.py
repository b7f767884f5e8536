"""Draws of noise a second on one core, ours beside OpenDP's exact discrete Gaussian, in one run.

    python benchmarks/noise.py

Ours is round(N(0, s^2)) from a keyed stream; OpenDP's is the discrete Gaussian
from the operating system's randomness.  Both are integer mechanisms with exact
sampling; they are not the same distribution.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import statistics
import time

from dpgmm_beam.privacy.noise import NoiseKey, rounded_gaussian

SCALES = {"counts": 30.0, "sums of vectors": 2.0**20, "second moments": 2.0**28, "teacher gradients": 2.0**33}
DRAWS, REPEATS = 1_000_000, 5
OPENDP_DRAWS = 50_000


def ours(scale: float) -> float:
    key = NoiseKey(b"a benchmark key of 32 bytes size").within("benchmark")
    started = time.perf_counter()
    rounded_gaussian(key, scale, DRAWS)
    return DRAWS / (time.perf_counter() - started)


def opendp(scale: float) -> float:
    import opendp.prelude as dp

    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="f64")
    measure = dp.m.make_gaussian(*space, scale)
    data = [0] * OPENDP_DRAWS
    started = time.perf_counter()
    measure(data)
    return OPENDP_DRAWS / (time.perf_counter() - started)


def main() -> None:
    print(f"{'scale of':<20}{'s':>12}{'ours, M/s (min-max)':>26}{'OpenDP, M/s':>14}{'ratio':>8}")
    for name, scale in SCALES.items():
        rates = [ours(scale) / 1e6 for _ in range(REPEATS)]
        baseline = statistics.median(opendp(scale) / 1e6 for _ in range(REPEATS))
        median = statistics.median(rates)
        spread = f"{median:.1f} ({min(rates):.1f}-{max(rates):.1f})"
        print(f"{name:<20}{scale:>12.3g}{spread:>26}{baseline:>14.3f}{median / baseline:>8.0f}")


if __name__ == "__main__":
    main()
