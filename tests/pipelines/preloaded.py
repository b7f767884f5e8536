"""What the fork server imports and computes once, for all processes that `processes.forked` starts."""

import os

from apache_beam.runners.worker import worker_pool_main  # noqa: F401

from dpgmm_beam.fit.plan import Plan
from tests import small
from tests.pipelines import processes  # noqa: F401

# As for the tests themselves: conftest.py.
os.fsync = lambda descriptor: None
# Calibrates the budget, which the process keeps.
_ = Plan(small.small_config(), "any").budget
