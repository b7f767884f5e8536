"""More pictures to be labelled by a teacher: what is drawn covers little of what real pictures do.

Public recipes, without a look at any data.
"""

import numpy as np
import scipy.ndimage

WIDER = 1.4
"""Variance of wider draws, over the mixture's."""

_MIXED, _WARPED, _LIT = 0.4, 0.3, 20


def mixed(pictures: np.ndarray, others: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Pictures of which four in ten are mixed with another one, and three in ten warped.

    Args:
      pictures, others: (n, h, w) or (n, h, w, 3) uint8.
    """
    if pictures.ndim == 3:
        return mixed(pictures[..., None], others[..., None], generator)[..., 0]
    result, count = pictures.copy(), len(pictures)
    chosen = np.flatnonzero(generator.random(count) < _MIXED)
    partners = generator.permutation(count)[: len(chosen)]
    result[chosen] = _pairs(pictures[chosen], others[partners], generator)
    for row in np.flatnonzero(generator.random(count) < _WARPED):
        result[row] = _warped(result[row], generator)
    return result


def _pairs(ones: np.ndarray, others: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A third each: means, cut and pasted halves, the one's silhouette with the other's texture."""
    ones, others = ones.astype(np.float32), others.astype(np.float32)
    count, height, width, _ = ones.shape
    weights = generator.uniform(0.3, 0.7, (count, 1, 1, 1))
    cuts = generator.integers(height // 4, 3 * height // 4, (count, 1, 1, 1))
    upper = np.arange(height)[None, :, None, None] < cuts
    left = np.arange(width)[None, None, :, None] < cuts
    halves = np.where(generator.random((count, 1, 1, 1)) < 0.5, upper, left)
    lit = ones.max(axis=3, keepdims=True) > _LIT
    brightness = (ones * lit).sum(axis=(1, 2)) / np.maximum(lit.sum(axis=(1, 2)), 1)
    texture = np.where(others.max(axis=3, keepdims=True) > _LIT, others, brightness[:, None, None])
    kinds = np.stack(
        [
            weights * ones + (1 - weights) * others,
            np.where(halves, ones, others),
            np.where(lit, texture, 0),
        ]
    )
    found = kinds[generator.integers(0, 3, count), np.arange(count)]
    return np.clip(found, 0, 255).astype(np.uint8)


def _warped(picture: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A little turned, sheared, stretched and moved."""
    turn, shear = generator.normal(0, 0.06), generator.normal(0, 0.08)
    across, down = np.exp(generator.normal(0, 0.08, 2))
    matrix = np.array([[np.cos(turn) * down, shear - np.sin(turn)], [np.sin(turn), np.cos(turn) * across]])
    middle = (np.array(picture.shape[:2]) - 1) / 2
    offset = middle - matrix @ middle + generator.normal(0, 0.7, 2)
    planes = [
        scipy.ndimage.affine_transform(plane, matrix, offset, order=1) for plane in np.moveaxis(picture, 2, 0)
    ]
    return np.stack(planes, axis=2)
