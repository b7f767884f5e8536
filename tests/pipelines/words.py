"""What is said, of which tests compare all but the time that it took."""

import re


def without_times(said: str) -> str:
    """The words of a run without what a slower machine says otherwise.

    Those are times, and the lines of progress that a log gets only of a step that takes long.
    """
    said = re.sub(r"^\S.*: +\d?\d%, .*\n", "", said, flags=re.MULTILINE)
    return re.sub(r"(\d+:)?\d\d:\d\d|\d+ s\b", "", said)
