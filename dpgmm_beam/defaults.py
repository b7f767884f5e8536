"""What is taken where nothing is said; apart, so that `dpgmm VERB --help` loads no mathematics."""

SAMPLES_PER_CLASS = 6000
"""Synthetic rows of each class."""

ROUNDS, UNUSED_ROUNDS = 8, 4
"""Rounds of clustering, and of a release of one component, which does none."""

ADJACENCIES = ("add_remove", "replace_one")
"""What neighbouring data sets may differ by, the usual one first."""

AUTO = "auto"
"""In the place of how many rows of a unit count: it is to be found (`fit.unit_bound`)."""

BLOCK_ROWS = 512
"""Rows of a numpy block."""

LABELS, ROWS = FAVORS = "labels", "rows"
"""What a budget may favour: labels of rows, as usual, or rows that are like real ones."""
