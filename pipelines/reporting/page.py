"""A report's two pages as HTML: one of the release alone, one of real rows for their owner.

Each is one file that fetches nothing and runs nothing: its content security policy forbids
both, so that no label can do what its page may not.  Templates escape whatever they are given.
"""

import importlib.resources
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpgmm_beam import __version__
from dpgmm_beam.errors import printable
from dpgmm_beam.privacy import tradeoff
from dpgmm_beam.privacy.neighbours import REPLACE_ONE, Neighbours
from dpgmm_beam.release.class_rows import NOISE_STDDEVS
from dpgmm_beam.release.manifest import plan_of
from pipelines.reporting import charts
from pipelines.reporting.charts import Chart
from pipelines.reporting.comparison import Comparison, NetworkFacts
from pipelines.reporting.facts import PROJECTED_ROWS, ClassFacts, ReleaseFacts

FULL_TABLE, ENDS, MOST_LISTED = 60, 10, 2000
"""Classes up to which one table has all; how many those of the ends have else; and the most of any."""

WIDE_ADVANTAGE = 0.5
"""From here on an attacker may be right in three cases of four, and the page says so."""

STEPS = {
    "units/rows": ("Images of people", "one is added to the people with about so many images"),
    "means/count": ("Class sizes", "one is added to the size of its class"),
    "means/sum": ("Class means", "its embedding is added to the sum of its class"),
    "moment/moment": ("Spread of the rows, roughly", "the products of its offset from the mean of its class"),
    "whitened/moment": ("Spread of the rows", "the same of its offset over the rough spread, clipped"),
    "start/slope": ("Sharpness of the teacher's start", "whether it would have the start sharper, clipped"),
    "teacher/gradient": ("Teacher that labels", "its gradient, clipped, in every step of training"),
    "sketch/count": ("Sketch: sizes", "one is added to the size of its cell"),
    "sketch/sum": ("Sketch: places", "its offset in a few directions, clipped"),
    "rounds/count": ("Early rounds: sizes", "one and its squared offset are added to its cell"),
    "rounds/sum": ("Early rounds: places", "its offset from the nearest centre, clipped"),
    "late/count": ("Late rounds: sizes", "one and its squared offset are added to its cell"),
    "late/sum": ("Late rounds: places", "its offset from the nearest centre, clipped"),
    "centres/sum": ("Whole centres", "its offset from the nearest centre in all directions, clipped"),
    "centres/square": ("Spread round centres", "the square of that offset, clipped"),
    "pictures/sum": ("Class means of pictures", "its picture is added to the sum of its class"),
    "pictures/cross": ("Pictures of embeddings", "its embedding times its picture, both clipped"),
    "pictures/square": ("Spread of pictures", "how far its picture is from the mean of its class"),
}
"""What each mechanism is for, and what one row can add."""


def public_page(release: ReleaseFacts) -> str:
    """The page of a release, a function of the release alone."""
    figures = tradeoff.operational(release.privacy["noise_multiplier"])
    neighbours = _neighbours(release)
    many = len(release.classes) > FULL_TABLE
    return _render(
        "public.html",
        release=release,
        figures=figures,
        words=tradeoff.in_words(figures, neighbours),
        noun=neighbours.noun,
        whom=neighbours.whom,
        replaced=neighbours.adjacency == REPLACE_ONE,
        right=_right(figures.advantage),
        wide=figures.advantage >= WIDE_ADVANTAGE,
        large_delta=release.privacy["delta"] * release.rows >= 1,
        steps=[{**each, "words": STEPS.get(each["name"], (each["name"], ""))} for each in _steps(release)],
        charts=_public_charts(release, figures.mu, figures.advantage),
        tables=_class_tables(release) if many else [("Classes", release.classes)],
        listed=release.classes[:MOST_LISTED] if many else (),
        most_entropy=math.log2(len(release.classes)),
        settings=_settings(release.config),
        noise_stddevs=NOISE_STDDEVS,
    )


def private_page(release: ReleaseFacts, network: NetworkFacts | None, comparison: Comparison | None) -> str:
    """The page of what was measured on real rows: exact, and for their owner only."""
    drawn: dict[str, Chart] = {}
    labels = [each.label for each in release.classes]
    if network is not None:
        drawn |= _network_charts(network, labels)
    if comparison is not None:
        drawn["overlay"] = charts.overlay(
            comparison.real_points,
            comparison.synthetic_points,
            release.projection.shares,
            f"{len(comparison.real_points):,} real rows and as many synthetic ones of the same classes.",
        )
    return _render(
        "private.html",
        release=release,
        network=network,
        comparison=comparison,
        charts=drawn,
        mistakes=[] if network is None else network.mistakes(15),
        classes=_private_classes(labels, network, comparison),
    )


def _right(advantage: float) -> str:
    """Right guesses in 100, rounded up, as all bounds are."""
    return f"{math.ceil(round(500 * (1 + advantage), 6)) / 10:.1f}"


def _render(name: str, **values: Any) -> str:
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipelines.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "label": lambda text: printable(text, None),
        "number": _number,
        "percent": _percent,
        "plain": _plain,
        "short": charts.short,
    }
    style = importlib.resources.files("pipelines.reporting").joinpath("templates/style.css").read_text()
    page = environment.get_template(name).render(
        style=Markup(style), svg=lambda chart: Markup(chart.svg), version=__version__, **values
    )
    return page + "\n"


def _number(value: float, digits: int = 0) -> str:
    return "n/a" if math.isnan(value) else f"{value:,.{digits}f}"


def _plain(value: float) -> str:
    """A number as it was given, with a power of ten in the place of an exponent.

    >>> _plain(0.5), _plain(1e-05), _plain(2.5e-06)
    ('0.5', '10⁻⁵', '2.5·10⁻⁶')
    """
    digits, _, exponent = f"{value:.6g}".partition("e")
    if not exponent:
        return digits
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if digits == "1" else f"{digits}·{power}"


def _percent(value: float, digits: int = 1) -> str:
    return "n/a" if math.isnan(value) else f"{100 * value:.{digits}f}%"


def _steps(release: ReleaseFacts) -> list[dict[str, Any]]:
    return [dict(each) for each in release.privacy["mechanisms"]]


def _neighbours(release: ReleaseFacts) -> Neighbours:
    return plan_of(dict(release.content)).config.neighbours


def _settings(config: Any) -> list[tuple[str, str]]:
    """The configuration but its classes, which have a table, as names and values."""
    method = config.get("method", {})
    own = {name: value for name, value in config.items() if name not in ("classes", "method", "shares")}
    return [(name, str(value)) for name, value in sorted({**own, **method}.items())]


def _class_tables(release: ReleaseFacts) -> list[tuple[str, Sequence[ClassFacts]]]:
    by_rows = sorted(release.classes, key=lambda each: -each.rows)
    by_agreement = sorted(
        release.classes, key=lambda each: math.inf if math.isnan(each.agreement) else each.agreement
    )
    return [
        (f"The {ENDS} largest classes", by_rows[:ENDS]),
        (f"The {ENDS} smallest classes", by_rows[-ENDS:]),
        (f"The {ENDS} classes that the teacher recognises least", by_agreement[:ENDS]),
    ]


def _public_charts(release: ReleaseFacts, mu: float, advantage: float) -> dict[str, Chart]:
    labels = [each.label for each in release.classes]
    count = len(labels)
    sizes = np.array([each.rows for each in release.classes])
    result = {
        "trade_off": _trade_off(mu, advantage, _neighbours(release).nouns),
        "budget": charts.bars(
            "budget",
            "Shares of the privacy budget by step",
            [STEPS.get(each["name"], (each["name"], ""))[0] for each in _steps(release)],
            np.array([100 * each["share"] for each in _steps(release)]),
            "share of the budget (%)",
            "; ".join(f"{each['name']} {100 * each['share']:.1f}%" for each in _steps(release)),
            form="{:.1f}",
            most=100,
        ),
        "spectrum": _spectrum(release),
        "projection": _projection(release),
    }
    about = f"Noisy numbers of rows, whose standard deviation is {release.rows_stddev:.1f}."
    result["sizes"] = (
        charts.bars(
            "sizes",
            "Noisy number of rows of each class",
            labels,
            sizes,
            "private rows, noisy, ± 2 deviations",
            about + " The table below has the figures.",
            errors=2 * release.rows_stddev,
            form="{:,.0f}",
        )
        if count <= charts.MAX_BARS
        else charts.ranked(
            "sizes",
            "Noisy numbers of rows, by rank",
            sizes,
            "private rows (noisy)",
            f"{about} From {sizes.min():,.0f} to {sizes.max():,.0f} in {count} classes.",
            errors=2 * release.rows_stddev,
        )
    )
    if release.has_teacher:
        agreements = np.array([100 * each.agreement for each in release.classes])
        about = "How often the teacher calls likeliest the class that a synthetic row was drawn from."
        result["agreement"] = (
            charts.bars(
                "agreement",
                "Agreement of the teacher, by class",
                labels,
                agreements,
                "rows labelled as their class (%)",
                about,
                form="{:.0f}",
                most=100,
            )
            if count <= charts.MAX_BARS
            else charts.ranked(
                "agreement", "Agreement of the teacher, by rank", agreements, "agreement (%)", about
            )
        )
    shares = release.mixture.weights
    if shares.shape[1] > 1 and count <= charts.MAX_BARS:
        result["weights"] = charts.weights(
            labels,
            shares,
            "Each bar is a class, cut into its components, the largest first.",
        )
    elif shares.shape[1] > 1:
        result["weights"] = charts.ranked(
            "weights",
            "Effective number of components, by rank",
            np.array([each.components for each in release.classes]),
            "effective components",
            f"Of {release.gaussians} components a class.",
        )
    return result


def _trade_off(mu: float, advantage: float, nouns: str) -> Chart:
    from scipy.special import ndtr, ndtri

    rates = np.concatenate([[0.0], ndtr(np.linspace(-4, 4, 161)), [1.0]])
    return charts.trade_off(rates, ndtr(ndtri(rates) + mu), 100 * advantage, nouns)


def _spectrum(release: ReleaseFacts) -> Chart:
    found = release.spectrum
    return charts.spectrum(
        found.total,
        found.within,
        f"The largest of {len(found.total)} directions has {100 * found.total[0]:.1f}% of the variance;"
        f" together they are as spread as {found.effective:.1f} equal ones.",
    )


def _projection(release: ReleaseFacts) -> Chart:
    rows = slice(0, PROJECTED_ROWS)
    points = release.projection(release.synthetic.embeddings[rows])
    classes = release.synthetic.labelled[rows]
    count = len(release.classes)
    sizes = np.bincount(classes, minlength=count).astype(float)
    sizes[sizes == 0] = math.nan
    means = np.column_stack([np.bincount(classes, points[:, axis], count) / sizes for axis in range(2)])
    return charts.projection(
        points,
        classes,
        [each.label for each in release.classes],
        means,
        release.projection.shares,
        f"{len(points):,} synthetic rows, by the teacher's likeliest class, in the two directions of largest"
        " variance of the released mixture.",
    )


def _network_charts(network: NetworkFacts, labels: Sequence[str]) -> dict[str, Chart]:
    accuracies = 100 * network.accuracies
    about = f"Accuracy by class on {network.metrics['test_rows']:,} real test rows."
    result = {
        "accuracy": charts.bars(
            "accuracy",
            "Accuracy by class",
            labels,
            accuracies,
            "accuracy (%)",
            about,
            form="{:.0f}",
            most=100,
        )
        if len(labels) <= charts.MAX_BARS
        else charts.ranked("accuracy", "Accuracy, by rank", accuracies, "accuracy (%)", about)
    }
    if network.confusion is not None and len(labels) <= charts.MAX_CELLS:
        result["confusion"] = charts.confusion(
            network.confusion,
            labels,
            "In percent of the test rows of a class: the diagonal is right. The table below has the commonest"
            " mistakes.",
        )
    return result


def _private_classes(
    labels: Sequence[str], network: NetworkFacts | None, comparison: Comparison | None
) -> list[tuple[str, float, float, float]]:
    """Label, exact rows, distance of the means and accuracy: the worst ones of many classes."""
    empty = np.full(len(labels), math.nan)
    rows = empty if comparison is None else comparison.by_class.astype(float)
    distances = empty if comparison is None else comparison.mean_distances
    accuracies = empty if network is None else network.accuracies
    found = list(zip(labels, rows.tolist(), distances.tolist(), accuracies.tolist(), strict=True))
    if len(found) > FULL_TABLE:
        found.sort(key=lambda each: (_last(each[3]), -_last(each[2], -math.inf)))
        found = found[:FULL_TABLE]
    return found


def _last(value: float, otherwise: float = math.inf) -> float:
    return otherwise if math.isnan(value) else value
