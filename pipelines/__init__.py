"""The programs: one module per verb of the `dpgmm` command."""

import logging

# Importing Beam without its Google Cloud extra logs a warning about BigQuery
# through the root logger, which concerns nobody here.
logging.getLogger().addFilter(lambda record: "apitools not found" not in record.getMessage())
