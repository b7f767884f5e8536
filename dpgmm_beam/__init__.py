"""Differentially private Gaussian mixtures of embeddings: the mathematics.

Nothing in this package imports Apache Beam; `transforms` wires it into
pipelines and `pipelines` holds the programs.
"""

__version__ = "0.1.0"

from dpgmm_beam.mixture import Mixture, load_mixture

__all__ = ["Mixture", "__version__", "load_mixture"]
