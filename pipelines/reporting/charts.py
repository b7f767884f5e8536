"""Charts of a report, as SVG that goes into a page and takes its colours and fonts from it.

Matplotlib draws with colours that stand for roles; in the SVG they become the page's CSS
variables, so that one drawing serves light, dark and paper.  The same numbers give the same bytes.
"""

import contextlib
import dataclasses
import html
import importlib.util
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from dpgmm_beam.errors import ConfigError, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = (f"#1111{number:02x}" for number in range(1, 5))
SERIES = tuple(f"#1111{number:02x}" for number in range(16, 24))
"""Colours by role; style.css says what they are, after Okabe and Ito's palette for all eyes."""

MARKERS = "osD^vPX*"
"""With as many colours these tell 8 classes apart without colour, and 64 with it."""

MAX_BARS = 30
"""Classes that are drawn one by one; more become a curve."""

MAX_NAMED = 24
"""Classes that are named in a projection."""

MAX_CELLS = 24
"""Classes of a confusion matrix that is drawn."""

WIDTH = 3.9
"""Of every chart, in inches: as wide as a phone, so that text has one size everywhere."""

_LABEL = 20
_LINE, _LETTER = 0.045, 0.0225
"""Height of a line and width of a letter in a projection, over its own."""
_ROLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES)
}


@dataclasses.dataclass(frozen=True)
class Chart:
    """A drawing and what it shows, in words.

    Attributes:
      name: unique on its page.
      title, description: for who does not see it.
      svg: markup to stand in a page.
    """

    name: str
    title: str
    description: str
    svg: str


def check_library(output: str) -> None:
    """Raises ConfigError, naming the page that is wanted, unless matplotlib and Jinja are installed."""
    missing = [name for name in ("matplotlib", "jinja2") if not _installed(name)]
    if missing:
        allowed = f'come with {" and ".join(missing)}: pip install "dpgmm-beam[report]"'
        raise ConfigError("output", output, allowed)


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:
        # Marked as one that can't be imported.
        return False


def trade_off(rates: np.ndarray, found: np.ndarray, percent: float, nouns: str = "images") -> Chart:
    """True- against false-positive rate of the best attack, and of guessing."""
    with _figure(3.1) as figure:
        axes = figure.add_subplot()
        axes.plot([0, 100], [0, 100], color=MUTED, linestyle=(0, (4, 3)), label="blind guessing")
        axes.fill_between(100 * rates, 100 * rates, 100 * found, color=SERIES[0], alpha=0.15, linewidth=0)
        axes.plot(100 * rates, 100 * found, color=SERIES[0], linewidth=2, label="best possible attack")
        axes.set(xlim=(0, 100), ylim=(0, 100))
        axes.set_xlabel(f"{nouns} wrongly said to be in (%)")
        axes.set_ylabel(f"{nouns} rightly said to be in (%)")
        _legend(axes, "lower right")
        return _chart(
            figure,
            "trade-off",
            "What the best possible attack finds",
            f"Share of the {nouns} in the data that an attacker can recognise, against the share of others"
            f" that are accused wrongly. The largest distance from guessing is {percent:.3g} points.",
        )


def bars(
    name: str,
    title: str,
    labels: Sequence[str],
    values: np.ndarray,
    axis: str,
    description: str,
    errors: float = 0.0,
    form: str = "{:.3g}",
    most: float | None = None,
) -> Chart:
    """Horizontal bars with their values, in the order given.

    Args:
      errors: half the length of an error bar; 0: there are none.
      form: of a value.
      most: end of the axis.
    """
    known, values = np.isfinite(values), np.nan_to_num(values)
    with _figure(0.75 + 0.235 * len(values)) as figure:
        axes = figure.add_subplot()
        places = np.arange(len(values))
        axes.barh(places, values, height=0.68, color=SERIES[0])
        if errors:
            axes.errorbar(
                values, places, xerr=errors, fmt="none", ecolor=INK, elinewidth=1.2, capsize=2.5, capthick=1.2
            )
        low, high = min(0.0, float((values - errors).min())), most or float((values + errors).max()) or 1.0
        room = high - low
        for place, value in enumerate(values.tolist()):
            axes.text(
                max(value + errors, 0) + 0.02 * room,
                place,
                form.format(value) if known[place] else "n/a",
                va="center",
                fontsize=8,
                color=INK,
            )
        axes.set_yticks(places, [short(label) for label in labels])
        axes.set_ylim(len(values) - 0.45, -0.55)
        axes.set_xlim(low - (0.02 * room if low else 0), high + 0.19 * room)
        axes.set_xlabel(axis)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        return _chart(figure, name, title, description)


def ranked(
    name: str, title: str, values: np.ndarray, axis: str, description: str, errors: float = 0.0
) -> Chart:
    """Many values by their rank, with a band of errors."""
    falling = np.sort(np.nan_to_num(values))[::-1]
    with _figure(2.6) as figure:
        axes = figure.add_subplot()
        ranks = np.arange(1, len(falling) + 1)
        if errors:
            axes.fill_between(
                ranks, falling - errors, falling + errors, color=SERIES[0], alpha=0.25, linewidth=0
            )
        axes.plot(ranks, falling, color=SERIES[0], linewidth=2)
        axes.set_xlim(1, len(falling))
        axes.set_ylim(min(0.0, float(falling.min() - errors)), None)
        axes.set_xlabel("class, by rank")
        axes.set_ylabel(axis)
        return _chart(figure, name, title, description)


def spectrum(total: np.ndarray, within: np.ndarray, description: str) -> Chart:
    """Eigenvalues by rank, on logarithmic axes."""
    with _figure(2.9) as figure:
        axes = figure.add_subplot()
        for values, label, colour, style in (
            (total, "all rows", SERIES[0], "-"),
            (within, "within components", SERIES[1], (0, (5, 2))),
        ):
            axes.plot(
                np.arange(1, len(values) + 1),
                np.maximum(100 * values, 1e-6),
                color=colour,
                linestyle=style,
                linewidth=2,
                label=label,
                marker="o" if len(values) < 3 else None,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        for side in (axes.xaxis, axes.yaxis):
            side.set_major_formatter(lambda value, _: f"{value:g}")
            side.set_minor_formatter(lambda value, _: "")
        axes.set_xlim(1, max(2, len(total)))
        axes.set_xlabel("direction, by rank")
        axes.set_ylabel("share of the variance (%)")
        _legend(axes, "lower left")
        return _chart(figure, "spectrum", "Spectrum of the released covariance", description)


def weights(labels: Sequence[str], shares: np.ndarray, description: str) -> Chart:
    """Weights of the components of each class, the largest first, as parts of one bar."""
    falling = -np.sort(-100 * shares, axis=1)
    with _figure(0.75 + 0.235 * len(falling)) as figure:
        axes = figure.add_subplot()
        left = np.zeros(len(falling))
        for number, widths in enumerate(falling.T):
            axes.barh(
                np.arange(len(falling)),
                widths,
                left=left,
                height=0.68,
                color=SERIES[0],
                alpha=(0.95, 0.6)[number % 2],
                edgecolor=PAPER,
                linewidth=0.7,
            )
            left = left + widths
        axes.set_yticks(np.arange(len(falling)), [short(label) for label in labels])
        axes.set_ylim(len(falling) - 0.45, -0.55)
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of the class (%)")
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        return _chart(figure, "weights", "Weights of the components", description)


def projection(
    points: np.ndarray,
    classes: np.ndarray,
    labels: Sequence[str],
    means: np.ndarray,
    shares: np.ndarray,
    description: str,
) -> Chart:
    """Rows in two directions, by class where these can be told apart, with the middles of the classes named.

    Args:
      points: (n, 2).
      classes: (n,) indices among the labels.
      means: (C, 2) of the points of each class; NaN where there are none.
      shares: (2,) of the variance, for the axes.
    """
    named = len(labels) <= MAX_NAMED
    lines = -(-len(labels) // 3) if named and len(labels) > 1 else 0
    with _figure(0.93 * WIDTH + 0.19 * lines) as figure:
        axes = figure.add_subplot()
        if named:
            for index in range(len(labels)):
                marker = MARKERS[(index + index // len(SERIES)) % len(MARKERS)]
                own, colour = points[classes == index], SERIES[index % len(SERIES)]
                _points(axes, own, marker, colour, 0.75, short(labels[index], 13))
        else:
            _points(axes, points, "o", SERIES[0], 0.45)
        _axes_of(axes, shares)
        if named and len(labels) > 1:
            _name(axes, labels, means)
            axes.legend(
                loc="upper center",
                bbox_to_anchor=(0.5, -0.08),
                ncols=3,
                frameon=False,
                handletextpad=0.1,
                columnspacing=0.8,
                markerscale=1.5,
            )
        return _chart(figure, "projection", "Synthetic rows in two directions", description)


def overlay(real: np.ndarray, synthetic: np.ndarray, shares: np.ndarray, description: str) -> Chart:
    """Real rows and synthetic ones in the same two directions, (n, 2) each."""
    with _figure(WIDTH * 0.98) as figure:
        axes = figure.add_subplot()
        _points(axes, real, "o", SERIES[1], 0.6, "real")
        _points(axes, synthetic, "x", SERIES[0], 0.8, "synthetic")
        _axes_of(axes, shares)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, markerscale=1.8)
        return _chart(figure, "overlay", "Real and synthetic rows in the same two directions", description)


def confusion(counts: np.ndarray, labels: Sequence[str], description: str) -> Chart:
    """A confusion matrix in percent of each row."""
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    count = len(labels)
    with _figure(WIDTH) as figure:
        axes = figure.add_subplot()
        size = 7.5 if count <= 12 else 5.5
        for row, column in np.ndindex(count, count):
            share = shares[row, column]
            if share >= 0.5:
                axes.fill(
                    column + np.array([-0.5, 0.5, 0.5, -0.5]),
                    row + np.array([-0.5, -0.5, 0.5, 0.5]),
                    color=SERIES[0 if row == column else 1],
                    alpha=round(0.12 + 0.5 * share / 100, 3),
                    linewidth=0,
                )
                axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=size, color=INK)
        names = [short(label, 14) for label in labels]
        axes.set_xticks(np.arange(count), names, rotation=90)
        axes.set_yticks(np.arange(count), names)
        axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5))
        axes.set_xlabel("called by the network")
        axes.set_ylabel("real class")
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.set_aspect("equal")
        return _chart(figure, "confusion", "Confusion of the network on real test rows", description)


def short(label: str, most: int = _LABEL) -> str:
    """A label as a chart has room for it."""
    text = printable(label, None)
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _points(
    axes: "Axes", points: np.ndarray, marker: str, colour: str, alpha: float, label: str | None = None
) -> None:
    size, edge = (4.6 if marker == "*" else 3.4), (1.0 if marker == "x" else 0.0)
    axes.plot(
        *points.T, marker, color=colour, markersize=size, alpha=alpha, markeredgewidth=edge, label=label
    )


def _name(axes: "Axes", labels: Sequence[str], means: np.ndarray) -> None:
    """Names at the middles of the classes, moved apart where they would cover each other."""
    found = [index for index in np.argsort(means[:, 1], kind="stable") if np.isfinite(means[index]).all()]
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    height, letter = _LINE * (top - bottom), _LETTER * (right - left)
    placed: list[tuple[float, float, float]] = []
    for index in found:
        x, y = means[index]
        text = short(labels[index], 16)
        half = max(len(text), 3) * letter / 2
        x = min(max(x, left + half), right - half)
        while clash := [
            other[1] for other in placed if abs(other[0] - x) < other[2] + half and abs(other[1] - y) < height
        ]:
            y = max(clash) + 1.001 * height
        placed.append((x, y, half))
        if abs(y - means[index][1]) > height / 2:
            axes.plot([x, means[index][0]], [y, means[index][1]], color=INK, linewidth=0.6, alpha=0.7)
        axes.text(x, y, text, ha="center", va="center", fontsize=8, color=INK, gid=_HALO)


def _axes_of(axes: "Axes", shares: np.ndarray) -> None:
    axes.set_xlabel(f"first direction ({100 * shares[0]:.0f}% of the variance)")
    axes.set_ylabel(f"second direction ({100 * shares[1]:.0f}%)")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(GRID)
    axes.margins(0.04)


def _legend(axes: "Axes", place: Literal["lower left", "lower right"]) -> None:
    axes.legend(loc=place, frameon=False, handlelength=2.6)


@contextlib.contextmanager
def _figure(height: float) -> "Iterator[Figure]":
    """A figure in the page's style, whatever the user's own settings of matplotlib."""
    import matplotlib.style
    from matplotlib.figure import Figure

    settings = {
        "axes.edgecolor": MUTED,
        "axes.axisbelow": True,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.labelcolor": INK,
        "axes.labelsize": 9,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.constrained_layout.use": True,
        "figure.facecolor": "none",
        "font.size": 9,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "legend.fontsize": 8.5,
        "legend.labelcolor": INK,
        "svg.fonttype": "none",
        "svg.hashsalt": "dpgmm report",
        "text.color": INK,
        "text.parse_math": False,
        "xtick.color": MUTED,
        "xtick.labelcolor": INK,
        "xtick.labelsize": 8.5,
        "ytick.color": MUTED,
        "ytick.labelcolor": INK,
        "ytick.labelsize": 8.5,
    }
    with matplotlib.style.context(["default", settings]), warnings.catch_warnings():
        # Labels are in any script, which the page's fonts draw and matplotlib's need not.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield Figure(figsize=(WIDTH, round(height, 3)))


def _chart(figure: "Figure", name: str, title: str, description: str) -> Chart:
    sink = io.StringIO()
    figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    return Chart(name, title, description, _for_page(sink.getvalue(), name, title, description))


_HALO = "halo"
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_PLACES = re.compile(r' (?:d|x|y|width|height|transform)="[^"]*"')
_USES = re.compile(r'(<g[^>]*)>((?:\s*<use [^>]*style="([^"]*)"/>)+)\s*</g>')


def _for_page(svg: str, name: str, title: str, description: str) -> str:
    """An SVG document as part of a page: roles for colours, ids that are its own, and words."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    # Hundredths of a point are not seen, and the last digits are the processor's.
    svg = _PLACES.sub(lambda found: _NUMBER.sub(_hundredths, found[0]), svg)
    svg = re.sub(r' transform="rotate\(-0[^"]*"', "", svg)
    svg = svg.replace(f' id="{_HALO}"', f' class="{_HALO}"')
    svg = re.sub(r"#1111[0-9a-f]{2}", lambda found: f"var(--{_ROLES[found[0]]})", svg)
    svg = re.sub(r"font-family:[^;\"]*;?|font: ([\d.]+px) [^;\"]*", _font, svg)
    # The points of a series share one style, which stands on their group.
    svg = _USES.sub(_share_style, svg)
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r">\s+<", "><", re.sub(r"\s*\n\s*", " ", svg))
    size = re.search(r'viewBox="[^"]*"', svg)
    assert size is not None
    opening = (
        f'<svg {size[0]} role="img" aria-labelledby="{name}-title {name}-description"'
        f' xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<title id="{name}-title">{html.escape(title)}</title>'
        f'<desc id="{name}-description">{html.escape(description)}</desc>'
    )
    return opening + svg[svg.index(">") + 1 :].strip()


def _hundredths(found: re.Match) -> str:
    return f"{float(found[0]):.2f}".rstrip("0").rstrip(".")


def _font(found: re.Match) -> str:
    return f"font-size: {found[1]}" if found[1] else ""


def _share_style(found: re.Match) -> str:
    style = f' style="{found[3]}"'
    return f"{found[1]}{style}>{found[2].replace(style, '')}</g>"
