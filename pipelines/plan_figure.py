"""The picture of `dpgmm plan`: noise and signal, accuracy by epsilon, what an attacker gains."""

import io
import math
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy.special import ndtr, ndtri

from dpgmm_beam.privacy.accounting import calibrated
from dpgmm_beam.release import references

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pipelines.plan import Forecast

EPSILONS = 0.1, 20.0
"""That are shown, and that of the plan."""

_INK, _BAND, _MARK = "#1f4e79", "#9dc3e6", "#c55a11"


def draw(found: "Forecast") -> bytes:
    """The picture as the bytes of a PNG file; the same forecast gives the same picture."""
    panels = 3 if found.loss else 2
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(5 * panels, 4.2), layout="constrained")
        axes = iter(figure.subplots(1, panels))
        _steps(next(axes), found)
        if found.loss:
            _accuracy(next(axes), found)
        _attacker(next(axes), found)
        config = found.plan.config
        figure.suptitle(
            f"{found.rows:,} rows, classes: {len(config.classes):,}, dimension {config.dimension:,}:"
            f" epsilon {config.epsilon:g}, delta {config.delta:g} (a forecast; no data was read)"
        )
        sink = io.BytesIO()
        figure.savefig(sink, format="png", dpi=150, metadata={"Software": None})
    return sink.getvalue()


def _steps(axes: "Axes", found: "Forecast") -> None:
    names = [step.mechanism for step in found.steps]
    ratios = [step.ratio for step in found.steps]
    # From 1, where noise is as large as what it hides.
    colours = [_INK if ratio > 1 else _MARK for ratio in ratios]
    axes.barh(names, [ratio - 1 for ratio in ratios], left=1, color=colours)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(
        xscale="log",
        xlim=(min(0.5, *ratios) / 1.5, max(2.0, *ratios) * 1.5),
        xlabel="signal over noise (left of 1: more noise)",
        title="Steps",
    )
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.invert_yaxis()


def _accuracy(axes: "Axes", found: "Forecast") -> None:
    config, curve = found.plan.config, references.curve()
    per_mu = found.rows / len(config.classes) / math.sqrt(config.dimension)
    shown = np.geomspace(min(EPSILONS[0], config.epsilon), max(EPSILONS[1], config.epsilon), 60)
    strengths = [per_mu / calibrated(float(epsilon), config.delta) for epsilon in shown]
    low, middle, high = 100 * np.array([curve.loss(strength) for strength in strengths]).T
    axes.fill_between(shown, low, high, color=_BAND, label="band of all measurements")
    axes.plot(shown, middle, color=_INK, label="expected")
    axes.plot([config.epsilon], [100 * found.loss[1]], "o", color=_MARK, label="this plan")  # type: ignore[index]
    for marker, (name, each) in zip("sv^", references.REFERENCES.items(), strict=False):
        # Where this plan has the strength that was measured.
        mus = np.log([each.strength(epsilon) / per_mu for epsilon in each.accuracy])
        epsilons = np.exp(np.interp(mus, np.log(strengths) - math.log(per_mu), np.log(shown)))
        inside = (epsilons > shown[0]) & (epsilons < shown[-1])
        losses = np.array([100 * max(each.loss(epsilon), references.MIN_LOSS) for epsilon in each.accuracy])
        axes.plot(
            epsilons[inside],
            losses[inside],
            marker,
            markersize=4,
            color="gray",
            label=f"{name}, at this strength",
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(shown[0], shown[-1]),
        xlabel="epsilon",
        ylabel="% of the accuracy above chance",
        title="Lost to noise",
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.legend(frameon=False, fontsize=7)


def _attacker(axes: "Axes", found: "Forecast") -> None:
    rates = np.geomspace(1e-5, 1, 200)
    axes.plot(rates, ndtr(ndtri(rates) + found.figures.mu), color=_INK, label=f"mu {found.figures.mu:g}")
    axes.plot(rates, rates, color="gray", linestyle="--", label="guessing")
    for rate, value in found.figures.tpr_at_fpr.items():
        axes.plot([rate], [value], "o", color=_MARK)
        axes.annotate(
            f"{value:.3g} at {rate:g}", (rate, value), (-7, 4), textcoords="offset points", ha="right"
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="false-positive rate",
        ylabel="true-positive rate, at most",
        title="Was this image in? The best attacker",
    )
    axes.legend(frameon=False, loc="lower right")
