"""Files of rows, as the prepare step sees them: row groups, each read from its beginning."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class RowGroups:
    """A file, what pins it, and the number of rows of each of its row groups."""

    path: str
    pin: str
    rows: tuple[int, ...]
