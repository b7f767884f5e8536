"""What Python imports first in every process whose PYTHONPATH holds this folder."""

from tests.pipelines import stopping

stopping.watch()
