"""What a process loads before it has any use for it: seconds and memory in every worker."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dpgmm_beam import Release

HEAVY = ("torch", "torchvision", "open_clip", "timm", "dp_accounting", "scipy.stats", "mpmath", "PIL")

WORKER = """
from dpgmm_beam.data import rows
from dpgmm_beam.fit import chain, plan
from dpgmm_beam.privacy import noise, queries
"""

DRIVER = """
from dpgmm_beam import config
from dpgmm_beam.data import images
from dpgmm_beam.encoders import registry
from dpgmm_beam.fit import plan
from dpgmm_beam.privacy import noise
from dpgmm_beam.release import manifest
released = config.ReleaseConfig("efficientnet_lite0", ("a", "b"), 8, 1.0, 1e-5)
registry.check_encoder(released.encoder)
planned = plan.Plan(released, "one")
received = plan.Plan.from_dict(planned.to_dict())
noise.rounded_gaussian(noise.NoiseKey(bytes(32)), received.budget.noise_multiplier, 100)
"""

PUBLISHER = DRIVER + "manifest.build(received, [])"


def loaded_after(program: str) -> set[str]:
    """The modules of HEAVY that a fresh Python has after a program."""
    program += f"\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("program", [WORKER, DRIVER], ids=["worker", "driver"])
def test_nothing_heavy_is_loaded(program):
    assert loaded_after(program) == set()


def test_a_manifest_takes_what_rounds_its_figures():
    assert loaded_after(PUBLISHER) == {"mpmath"}


def test_what_is_heavy_is_seen_where_it_is_used():
    checking = """
from dpgmm_beam.data import images
from dpgmm_beam.privacy import accounting
spent = accounting.Budget(1.0, 1e-5, (accounting.Mechanism("all", 1.0),))
accounting.epsilon_by_pld(accounting.event_from_json(spent.event()), 1e-5)
images.use_image(bytes.fromhex("89504e470d0a1a0a"), print)
"""
    assert {"dp_accounting", "scipy.stats", "PIL"} <= loaded_after(checking)


LOADING = """
import importlib.abc
import sys

NEEDED = {"dpgmm_beam", "numpy", "pyarrow", "scipy", "threadpoolctl"}


class OnlyThese(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        top = name.partition(".")[0]
        if not (top in NEEDED | sys.stdlib_module_names or top.startswith("_sysconfigdata")):
            raise ImportError(f"{name} is not installed here")


sys.meta_path.insert(0, OnlyThese())
from dpgmm_beam import load_labeller, load_mixture, load_release

release = load_release(FOLDER)
rows = release.sample(10, seed=1)
assert release.predict(rows.embeddings).shape == release.score_samples(rows.embeddings).shape == (10,)
assert load_labeller(FOLDER).probabilities(rows.embeddings).shape == (10, 2)
assert load_mixture(FOLDER).log_prob(rows.embeddings).shape == (10,)
release.save(FOLDER + " again")
for missing in ("apache_beam", "torch"):
    try:
        __import__(missing)
    except ImportError:
        continue
    raise AssertionError(missing)
"""


def test_releases_are_loaded_with_little(tmp_path):
    """Neither Beam nor torch: docs/api.md says what is installed for it, setup.py which versions."""
    generator = np.random.default_rng(0)
    labels = ["a", "b"] * 20
    options = {"classes": ["a", "b"], "epsilon": 1.0, "delta": 1e-5, "samples_per_class": 5}
    Release.fit(generator.normal(size=(40, 4)), labels, **options).save(tmp_path / "release")
    program = LOADING.replace("FOLDER", repr(str(tmp_path / "release")))
    assert loaded_after(program) & {"torch", "dp_accounting", "scipy.stats", "mpmath"} == set()

    repository = Path(__file__).parents[2]
    (command,) = re.findall(r"pip install (\"numpy.*)", (repository / "docs" / "api.md").read_text())
    wanted = re.findall(r'"([^"]+)"', command)
    assert {re.match("[a-z]+", each)[0] for each in wanted} == {"numpy", "scipy", "pyarrow", "threadpoolctl"}
    stated = (repository / "setup.py").read_text()
    assert all(f'"{each}"' in stated for each in wanted)
