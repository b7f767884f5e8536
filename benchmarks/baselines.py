"""Private classifiers to compare a release with, each on the same normalised embeddings.

Every one is (epsilon, delta)-private for adding or removing a row unless its
docstring says otherwise (two packages keep to weaker or stronger notions), but
that the gradient methods take the number of rows as known, which flatters them.  They
give predictions for the test rows; what a baseline would release is smaller than a
release of rows, and is good for one task only.  An epsilon of infinity is none.
"""

import dataclasses
import math
import warnings
from collections.abc import Iterable, Iterator

import dp_accounting
import numpy as np

from dpgmm_beam.network import train_network


@dataclasses.dataclass(frozen=True)
class Problem:
    """Embeddings of norm 1 and class indices.

    Attributes:
      x, test_x: (n, d) float32.
      y, test_y: (n,) ints.
      classes: how many there are.
    """

    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    classes: int

    def one_hot(self) -> np.ndarray:
        return np.eye(self.classes, dtype=np.float32)[self.y]


def noise_multiplier(epsilon: float, delta: float) -> float:
    """Of one Gaussian mechanism with all of the budget; T equal ones have sqrt(T) times it."""
    return 0.0 if math.isinf(epsilon) else float(dp_accounting.get_sigma_gaussian(epsilon, delta))


def clipped(norms: np.ndarray, bound: float) -> np.ndarray:
    """Factors that bring rows of these norms to the bound, (n, 1) float32."""
    return np.minimum(1.0, bound / np.maximum(norms, 1e-12)).astype(np.float32)[:, None]


CENTRE_SHARE = 0.02
"""Share of 1/z^2 for the mean of all rows, which the gradient methods subtract."""

BIAS = 0.2
"""The constant feature beside rows of norm 1: a larger one would take from what clipping leaves them."""


def centred(problem: Problem, z: float, generator: np.random.Generator) -> Problem:
    """Rows minus their noisy mean, again of norm 1: without it, the common direction slows every probe."""
    total = problem.x.sum(axis=0, dtype=np.float64)
    noise = z / math.sqrt(CENTRE_SHARE) * generator.standard_normal(total.shape)
    mean = ((total + noise) / len(problem.x)).astype(np.float32)
    rows = [x - mean for x in (problem.x, problem.test_x)]
    x, test_x = (r / np.maximum(np.linalg.norm(r, axis=1, keepdims=True), 1e-12) for r in rows)
    return dataclasses.replace(problem, x=x, test_x=test_x)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def descend(
    start: list[np.ndarray], gradients: Iterable, rate: float, steps: int, momentum: float = 0.9
) -> list[np.ndarray]:
    """Heavy-ball steps; the mean of the second half of the iterates.

    Args:
      gradients: a generator that is sent the parameters and yields their noisy mean gradients.
    """
    source: Iterator = iter(gradients)
    next(source)
    current, velocity = start, [np.zeros_like(p) for p in start]
    mean = [np.zeros_like(p) for p in start]
    for step in range(steps):
        gradient = source.send(current)
        velocity = [momentum * v - rate * g for v, g in zip(velocity, gradient, strict=True)]
        current = [p + v for p, v in zip(current, velocity, strict=True)]
        if step >= steps // 2:
            mean = [m + p / (steps - steps // 2) for m, p in zip(mean, current, strict=True)]
    return mean


def linear_probe(
    problem: Problem, epsilon: float, delta: float, generator: np.random.Generator, clip, steps, rate
) -> np.ndarray:
    """Multinomial logistic regression by full-batch DP-SGD (Abadi et al. 2016)."""
    z = noise_multiplier(epsilon, delta)
    problem = centred(problem, z, generator)
    noise = z / math.sqrt(1 - CENTRE_SHARE) * math.sqrt(steps) * clip
    one_hot = problem.one_hot()
    shapes = ((problem.x.shape[1], problem.classes), (problem.classes,))
    lengths = math.sqrt(1 + BIAS**2)

    def gradients():
        weights, bias = yield
        while True:
            residuals = softmax(problem.x @ weights + BIAS * bias) - one_hot
            residuals *= clipped(np.linalg.norm(residuals, axis=1) * lengths, clip)
            sums = (problem.x.T @ residuals, BIAS * residuals.sum(axis=0))
            weights, bias = yield [
                ((s + noise * generator.standard_normal(s.shape)) / len(one_hot)).astype(np.float32)
                for s in sums
            ]

    weights, bias = descend([np.zeros(s, np.float32) for s in shapes], gradients(), rate, steps)
    return (problem.test_x @ weights + BIAS * bias).argmax(axis=1)


def two_layers(
    problem: Problem,
    epsilon: float,
    delta: float,
    generator: np.random.Generator,
    clip,
    steps,
    rate,
    hidden=64,
) -> np.ndarray:
    """A network of one hidden layer by full-batch DP-SGD, gradients of all rows clipped exactly.

    A row's gradient is a sum of two outer products, whose norms are known from
    their factors, so no row's gradient is ever written down.
    """
    z = noise_multiplier(epsilon, delta)
    problem = centred(problem, z, generator)
    noise = z / math.sqrt(1 - CENTRE_SHARE) * math.sqrt(steps) * clip
    d, classes = problem.x.shape[1], problem.classes
    one_hot = problem.one_hot()
    # Rows of norm 1 have coordinates of 1/sqrt(d): first weights of unit size suit them.
    start = [
        generator.standard_normal((d, hidden)).astype(np.float32),
        np.zeros(hidden, np.float32),
        (generator.standard_normal((hidden, classes)) / hidden).astype(np.float32),
        np.zeros(classes, np.float32),
    ]
    block = 8192

    def gradients():
        parameters = yield
        while True:
            w1, b1, w2, b2 = parameters
            sums = [np.zeros_like(p) for p in parameters]
            for begin in range(0, len(one_hot), block):
                x, y = problem.x[begin : begin + block], one_hot[begin : begin + block]
                h = np.maximum(x @ w1 + BIAS * b1, 0)
                outer = softmax(h @ w2 + BIAS * b2) - y
                inner = (outer @ w2.T) * (h > 0)
                squares = (outer**2).sum(axis=1) * ((h**2).sum(axis=1) + BIAS**2)
                squares += (inner**2).sum(axis=1) * ((x**2).sum(axis=1) + BIAS**2)
                factors = clipped(np.sqrt(squares), clip)
                outer, inner = outer * factors, inner * factors
                for total, part in zip(
                    sums,
                    (x.T @ inner, BIAS * inner.sum(axis=0), h.T @ outer, BIAS * outer.sum(axis=0)),
                    strict=True,
                ):
                    total += part
            parameters = yield [
                ((s + noise * generator.standard_normal(s.shape)) / len(one_hot)).astype(np.float32)
                for s in sums
            ]

    w1, b1, w2, b2 = descend(start, gradients(), rate, steps)
    return (np.maximum(problem.test_x @ w1 + BIAS * b1, 0) @ w2 + BIAS * b2).argmax(axis=1)


def symmetric_noise(d: int, deviation: float, generator: np.random.Generator) -> np.ndarray:
    """Noise of a second moment whose isometric vector (diagonal, sqrt 2 x triangle) has this deviation."""
    noise = np.triu(generator.standard_normal((d, d)), 1) * (deviation / math.sqrt(2))
    return noise + noise.T + np.diag(generator.standard_normal(d) * deviation)


def second_moment(x: np.ndarray) -> np.ndarray:
    """x^T x in float64, block by block."""
    total = np.zeros((x.shape[1], x.shape[1]))
    for begin in range(0, len(x), 8192):
        part = x[begin : begin + 8192].astype(np.float64)
        total += part.T @ part
    return total


class LeastSquares:
    """One-hot regression from noisy x^T x and x^T y with a ridge (Mehta et al. 2022, tied form).

    The exact moments are computed once: a repetition draws new noise only.
    """

    def __init__(self, problem: Problem):
        self.problem = problem
        self.moment = second_moment(problem.x)
        self.cross = (problem.x.T @ problem.one_hot()).astype(np.float64)

    def __call__(
        self, epsilon: float, delta: float, generator: np.random.Generator, share, ridge
    ) -> np.ndarray:
        """Args: share of 1/z^2 for x^T x, and the ridge, over that matrix's noise (over n without noise)."""
        z = noise_multiplier(epsilon, delta)
        d = len(self.moment)
        spread = z / math.sqrt(share)
        moment = self.moment + symmetric_noise(d, spread, generator)
        cross = self.cross + z / math.sqrt(1 - share) * generator.standard_normal(self.cross.shape)
        # The largest eigenvalue of the noise is about spread sqrt(2 d).
        floor = ridge * (spread * math.sqrt(2 * d) or 1e-4 * len(self.problem.x))
        values, vectors = np.linalg.eigh(moment)
        weights = (vectors / (np.maximum(values, 0) + floor)) @ (vectors.T @ cross)
        return (self.problem.test_x @ weights).argmax(axis=1)


def noisy_means(problem: Problem, z: float, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Counts (C,) and means (C, d) of the classes, a tenth of 1/z^2 for the counts."""
    counts = np.bincount(problem.y, minlength=problem.classes).astype(np.float64)
    counts += z / math.sqrt(0.1) * generator.standard_normal(problem.classes)
    counts = np.maximum(counts, 1)
    sums = (problem.one_hot().T @ problem.x).astype(np.float64)
    sums += z / math.sqrt(0.9) * generator.standard_normal(sums.shape)
    return counts, sums / counts[:, None]


def class_means(
    problem: Problem, epsilon: float, delta: float, generator: np.random.Generator, by
) -> np.ndarray:
    """Nearest noisy class mean; `by` is "cosine" or "euclidean"."""
    _, means = noisy_means(problem, noise_multiplier(epsilon, delta), generator)
    return nearest(problem.test_x, means, by)


def nearest(x: np.ndarray, means: np.ndarray, by: str) -> np.ndarray:
    if by == "cosine":
        means = means / np.linalg.norm(means, axis=1, keepdims=True)
        return (x @ means.T).argmax(axis=1)
    return (2 * x @ means.T - (means**2).sum(axis=1)).argmax(axis=1)


def dp_learning_ff(
    problem: Problem, epsilon: float, delta: float, generator: np.random.Generator, dist, steps, by
) -> np.ndarray:
    """The package's private prototypes (CoinPress means, Wahdany et al. 2024).

    Its accounting is for replacing a row of a class whose size is public: a
    weaker promise than ours.  The package expects coordinates of unit size, so
    rows are scaled to norm sqrt(d).
    """
    from dp_learning_ff.mechanisms import ScaledCoinpressGM, calibrate_single_param
    from dp_learning_ff.prototypes import give_private_prototypes

    scale = math.sqrt(problem.x.shape[1])
    if math.isinf(epsilon):
        budgets = [1e9] * steps
    else:
        budgets = calibrate_single_param(
            lambda size: ScaledCoinpressGM(size, steps=steps, dist=dist), epsilon, delta
        ).params["Ps"]
    # The package draws from numpy's global generator.
    np.random.seed(int(generator.integers(2**32)))  # noqa: NPY002
    means = give_private_prototypes(problem.x.astype(np.float64) * scale, problem.y, budgets)
    return nearest(problem.test_x, means / scale, by)


def diffprivlib_naive_bayes(
    problem: Problem, epsilon: float, delta: float, generator: np.random.Generator, bound, smoothing
) -> np.ndarray:
    """diffprivlib's GaussianNB: pure epsilon, Laplace noise, the budget split over the d features.

    Args:
      bound: coordinates are declared to lie within it and its negative, in
        units of 1/sqrt(d), the size of a coordinate of a row of norm 1.
    """
    from diffprivlib.models import GaussianNB
    from sklearn.naive_bayes import GaussianNB as WithoutPrivacy

    edge = bound / math.sqrt(problem.x.shape[1])
    if math.isinf(epsilon):
        model = WithoutPrivacy(var_smoothing=smoothing)
    else:
        model = GaussianNB(
            epsilon=epsilon,
            bounds=(-edge, edge),
            var_smoothing=smoothing * edge**2,
            random_state=int(generator.integers(2**31)),
        )
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return model.fit(problem.x.astype(np.float64), problem.y).predict(problem.test_x.astype(np.float64))


def gaussian_per_class(
    problem: Problem, epsilon: float, delta: float, generator: np.random.Generator, floor
) -> np.ndarray:
    """The network on rows of `gaussian_rows`."""
    drawn, targets = gaussian_rows(problem, epsilon, delta, generator, floor)
    network = train_network(drawn, targets, [str(c) for c in range(problem.classes)])
    return network.predict(problem.test_x)


def gaussian_rows(
    problem: Problem,
    epsilon: float,
    delta: float,
    generator: np.random.Generator,
    floor: float,
    each: int = 6000,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows drawn from a noisy mean and an own noisy covariance for each class, and their classes.

    A third of 1/z^2 goes to counts and means and the rest to the second moments
    of residuals clipped at 1.  Eigenvalues under `floor` times the noise's
    spectral radius are replaced by the mean of those (noise averages out).
    """
    z = noise_multiplier(epsilon, delta)
    counts, means = noisy_means(problem, z * math.sqrt(3), generator)
    d = problem.x.shape[1]
    drawn, targets = [], []
    for label in range(problem.classes):
        residuals = problem.x[problem.y == label] - means[label].astype(np.float32)
        residuals *= clipped(np.linalg.norm(residuals, axis=1), 1.0)
        spread = z * math.sqrt(1.5)
        moment = second_moment(residuals) + symmetric_noise(d, spread, generator)
        values, vectors = np.linalg.eigh(moment / counts[label])
        low = values < floor * spread * math.sqrt(2 * d) / counts[label]
        if low.any():
            values[low] = max(float(values[low].mean()), 1e-7)
        values = np.maximum(values, 1e-9)
        rows = generator.standard_normal((each, d), dtype=np.float32)
        rows = rows @ (vectors * np.sqrt(values)).astype(np.float32).T + means[label].astype(np.float32)
        drawn.append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))
        targets.append(np.full(len(rows), label))
    return np.concatenate(drawn), np.concatenate(targets)


MERF_FEATURES, MERF_STEPS, MERF_BATCH = 2000, 3000, 500


def merf_rows(
    problem: Problem, epsilon: float, delta: float, generator: np.random.Generator, each: int = 2000
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a generator that has learnt a noisy mean embedding in random features, and their classes.

    DP-MERF (Harder, Adamczewski and Park 2021): random Fourier features of norm 1 (a Gaussian kernel of
    deviation 1, half of the largest distance that rows of norm 1 have), summed by class with noise
    once; a network of two hidden layers is trained to have the same.  Class sizes are taken as
    known, which flatters it.
    """
    import torch

    torch.manual_seed(int(generator.integers(2**31)))
    d, classes = problem.x.shape[1], problem.classes
    waves = torch.from_numpy(generator.standard_normal((d, MERF_FEATURES // 2)).astype(np.float32))

    def features(rows):
        angles = rows @ waves
        return torch.cat([torch.cos(angles), torch.sin(angles)], 1) * math.sqrt(2 / MERF_FEATURES)

    with torch.no_grad():
        sums = torch.zeros(classes, MERF_FEATURES)
        for start in range(0, len(problem.x), 4096):
            block = slice(start, start + 4096)
            labels = torch.from_numpy(problem.y[block].astype(np.int64))
            sums.index_add_(0, labels, features(torch.from_numpy(problem.x[block])))
        noise = noise_multiplier(epsilon, delta) * generator.standard_normal(sums.shape)
        due = (sums + torch.from_numpy(noise.astype(np.float32))) / len(problem.x)
    model = torch.nn.Sequential(
        torch.nn.Linear(64 + classes, 256), torch.nn.ReLU(), torch.nn.Linear(256, 512), torch.nn.ReLU()
    ).append(torch.nn.Linear(512, d))
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    shares = np.bincount(problem.y, minlength=classes) / len(problem.y)

    def drawn(labels):
        one_hot = torch.nn.functional.one_hot(labels, classes).float()
        return torch.nn.functional.normalize(model(torch.cat([torch.randn(len(labels), 64), one_hot], 1)))

    for _ in range(MERF_STEPS):
        labels = torch.from_numpy(generator.choice(classes, MERF_BATCH, p=shares))
        found = torch.zeros(classes, MERF_FEATURES).index_add(0, labels, features(drawn(labels)))
        loss = ((found / MERF_BATCH - due) ** 2).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        labels = torch.arange(classes).repeat_interleave(each)
        return drawn(labels).numpy(), labels.numpy()
