"""Public measurements that forecasts stand on: accuracies and geometries of public data sets.

Accuracies are those of benchmarks/results/utility.json (the row "network on our
release", delta 1e-5, means over three keys; a test compares them), geometries what
benchmarks/forecast.py --geometry prints.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy.accounting import calibrated
from dpgmm_beam.release.geometry import Geometry

DELTA = 1e-5

MIN_LOSS = 0.002
"""A smaller measured loss is taken for this one: the spread over keys is no less."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """A public data set with what releases of it gave.

    Attributes:
      about: rows and what embedded them.
      rows, classes, dimension: of the released data.
      accuracy: of a network trained on a release, on real test rows, by epsilon.
      without_noise: the same from a fit without noise.
      real: the same network trained on the real rows.
      geometry: None where it was not measured.
    """

    about: str
    rows: int
    classes: int
    dimension: int
    accuracy: Mapping[float, float]
    without_noise: float
    real: float
    geometry: Geometry | None = None

    def strength(self, epsilon: float) -> float:
        """As `forecast.strength`."""
        return self.rows / self.classes / calibrated(epsilon, DELTA) / math.sqrt(self.dimension)

    def loss(self, epsilon: float) -> float:
        """What noise takes of the accuracy above chance."""
        chance = 1 / self.classes
        return (self.without_noise - self.accuracy[epsilon]) / (self.without_noise - chance)


@dataclasses.dataclass(frozen=True)
class Curve:
    """Loss of accuracy against strength: a power law through all measurements, and a band round it.

    Attributes:
      slope, offset: log loss = offset + slope * log strength.
      factor: no measurement is further from the law than by this factor.
      least, most: strengths that were measured.
    """

    slope: float
    offset: float
    factor: float
    least: float
    most: float

    def loss(self, strength: float) -> tuple[float, float, float]:
        """Low, middle and high end of the band of the loss, as parts of the accuracy above chance."""
        middle = math.exp(self.offset + self.slope * math.log(strength))
        low, middle, high = (min(1.0, middle * factor) for factor in (1 / self.factor, 1, self.factor))
        return low, middle, high

    def strength_for(self, loss: float) -> float:
        """The strength at which the middle of the band is this loss."""
        return math.exp((math.log(loss) - self.offset) / self.slope)

    def measured(self, strength: float) -> bool:
        """Whether there were measurements on both sides."""
        return self.least <= strength <= self.most


def curve() -> Curve:
    """Through the measurements of all references."""
    points = [
        (each.strength(epsilon), max(each.loss(epsilon), MIN_LOSS))
        for each in REFERENCES.values()
        for epsilon in each.accuracy
    ]
    strengths, losses = np.log(np.array(points)).T
    slope, offset = np.polyfit(strengths, losses, 1)
    furthest = np.abs(losses - offset - slope * strengths).max()
    return Curve(
        float(slope),
        float(offset),
        float(np.exp(furthest)),
        float(np.exp(strengths.min())),
        float(np.exp(strengths.max())),
    )


def geometry_of(name: str) -> Geometry:
    """The geometry of the reference of this name.

    Raises:
      ConfigError: there is none.
    """
    known = {each: found.geometry for each, found in REFERENCES.items() if found.geometry}
    if name not in known:
        raise ConfigError("like", name, f"be one of {', '.join(known)}")
    return known[name]


REFERENCES: Mapping[str, Reference] = {
    "Fashion-MNIST": Reference(
        about="60,000 images by efficientnet_lite0",
        rows=60000,
        classes=10,
        dimension=1280,
        accuracy={0.5: 0.8635, 1.0: 0.8727, 2.0: 0.8844, 4.0: 0.8873, 8.0: 0.8916},
        without_noise=0.8948,
        real=0.9082,
        geometry=Geometry(
            ranks=(
                0.0,
                0.0007813,
                0.001563,
                0.002344,
                0.003125,
                0.003906,
                0.004687,
                0.005469,
                0.00625,
                0.007812,
                0.008594,
                0.01016,
                0.01172,
                0.01406,
                0.01641,
                0.01875,
                0.02187,
                0.02578,
                0.03047,
                0.03516,
                0.04063,
                0.04766,
                0.05547,
                0.06484,
                0.075,
                0.0875,
                0.1016,
                0.1187,
                0.1383,
                0.1609,
                0.1875,
                0.218,
                0.2539,
                0.2961,
                0.3445,
                0.4016,
                0.4672,
                0.5437,
                0.6336,
                0.7375,
                0.8586,
                1.0,
            ),
            within=(
                0.0,
                0.02634,
                0.04475,
                0.06123,
                0.07417,
                0.08648,
                0.09825,
                0.1082,
                0.118,
                0.1351,
                0.1426,
                0.1567,
                0.1691,
                0.1848,
                0.1987,
                0.2109,
                0.2251,
                0.2404,
                0.2559,
                0.2689,
                0.2818,
                0.2958,
                0.3087,
                0.3216,
                0.3334,
                0.3455,
                0.3569,
                0.3686,
                0.3796,
                0.3903,
                0.4006,
                0.4104,
                0.42,
                0.4294,
                0.4382,
                0.4468,
                0.4548,
                0.4622,
                0.4688,
                0.4742,
                0.4779,
                0.4792,
            ),
            between=(
                0.0,
                0.005035,
                0.01008,
                0.01876,
                0.02539,
                0.037,
                0.06012,
                0.06429,
                0.06787,
                0.08086,
                0.08478,
                0.0904,
                0.1011,
                0.1054,
                0.1123,
                0.1167,
                0.122,
                0.1281,
                0.1336,
                0.1379,
                0.1434,
                0.1465,
                0.1483,
                0.1515,
                0.1543,
                0.1564,
                0.1577,
                0.159,
                0.1601,
                0.1611,
                0.1618,
                0.1624,
                0.1629,
                0.1635,
                0.1639,
                0.1642,
                0.1645,
                0.1647,
                0.1649,
                0.165,
                0.1651,
                0.1652,
            ),
            centre=(
                0.0,
                0.01518,
                0.01771,
                0.01861,
                0.01915,
                0.02173,
                0.02402,
                0.03275,
                0.03302,
                0.03834,
                0.03838,
                0.05977,
                0.06019,
                0.06344,
                0.07131,
                0.07323,
                0.07722,
                0.08859,
                0.0945,
                0.1134,
                0.1209,
                0.1363,
                0.1536,
                0.156,
                0.1634,
                0.1726,
                0.1836,
                0.2049,
                0.2159,
                0.2359,
                0.2554,
                0.2673,
                0.2802,
                0.2925,
                0.307,
                0.3216,
                0.3302,
                0.34,
                0.3471,
                0.3528,
                0.3551,
                0.3555,
            ),
        ),
    ),
    "MNIST-5k": Reference(
        about="4,000 images by efficientnet_lite0",
        rows=4000,
        classes=10,
        dimension=1280,
        accuracy={0.5: 0.8153, 1.0: 0.8643, 2.0: 0.896, 4.0: 0.9153, 8.0: 0.93},
        without_noise=0.9497,
        real=0.9553,
    ),
    "digits": Reference(
        about="1,437 images of 8 x 8, their pixels",
        rows=1437,
        classes=10,
        dimension=64,
        accuracy={0.5: 0.8422, 1.0: 0.9127, 2.0: 0.9359, 4.0: 0.9471, 8.0: 0.9573},
        without_noise=0.9805,
        real=0.9786,
        geometry=Geometry(
            ranks=(
                0.0,
                0.01562,
                0.03125,
                0.04688,
                0.0625,
                0.07812,
                0.09375,
                0.1094,
                0.125,
                0.1406,
                0.1562,
                0.1719,
                0.1875,
                0.2031,
                0.2188,
                0.25,
                0.2656,
                0.2969,
                0.3125,
                0.3438,
                0.375,
                0.4062,
                0.4531,
                0.5,
                0.5312,
                0.5938,
                0.6406,
                0.7031,
                0.7656,
                0.8438,
                0.9219,
                1.0,
            ),
            within=(
                0.0,
                0.02389,
                0.04262,
                0.05634,
                0.06713,
                0.07636,
                0.08527,
                0.09322,
                0.1005,
                0.1074,
                0.1138,
                0.1191,
                0.1239,
                0.1282,
                0.1323,
                0.1394,
                0.1424,
                0.1481,
                0.1507,
                0.1552,
                0.1589,
                0.1621,
                0.1663,
                0.1696,
                0.1714,
                0.1746,
                0.1765,
                0.1782,
                0.1793,
                0.1795,
                0.1795,
                0.1795,
            ),
            between=(
                0.0,
                0.01056,
                0.02616,
                0.03548,
                0.0439,
                0.05987,
                0.06981,
                0.07683,
                0.08555,
                0.08911,
                0.09573,
                0.09931,
                0.104,
                0.1052,
                0.1071,
                0.1129,
                0.1144,
                0.1186,
                0.1199,
                0.122,
                0.1245,
                0.1269,
                0.1293,
                0.1303,
                0.1312,
                0.1323,
                0.1328,
                0.133,
                0.1332,
                0.1332,
                0.1332,
                0.1332,
            ),
            centre=(
                0.0,
                0.0004771,
                0.0005242,
                0.0005819,
                0.0006335,
                0.002314,
                0.006361,
                0.006384,
                0.03448,
                0.04236,
                0.04873,
                0.06106,
                0.064,
                0.06402,
                0.09022,
                0.1038,
                0.1067,
                0.1202,
                0.122,
                0.1223,
                0.1312,
                0.1376,
                0.1511,
                0.193,
                0.1934,
                0.5233,
                0.6473,
                0.6804,
                0.687,
                0.6872,
                0.6872,
                0.6872,
            ),
        ),
    ),
}
