"""What a process loads before it has any use for it: seconds and memory in every worker."""

import subprocess
import sys
from pathlib import Path

import pytest

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
