"""The noisy sizes of a release's classes: read back from it, and said."""

from dpgmm_beam.release import manifest
from dpgmm_beam.release.class_rows import CLASSES_FILE, ClassRows
from pipelines import cli
from transforms.files.publish import join
from transforms.files.small import read_bounded


def class_rows_of(release: str) -> ClassRows:
    """The noisy sizes of a release's classes.

    Raises:
      KeyError, OSError, ValueError: they can't be read.
    """
    return ClassRows.load(
        lambda name: read_bounded(join(release, manifest.MIXTURE, name), manifest.MAX_BYTES)
    )


def say_class_rows(output: str) -> None:
    """What a finished release tells of the size of its classes: noisy and in it, so anyone may read it."""
    try:
        found = class_rows_of(output)
    except (KeyError, OSError, ValueError):
        # The release stands; what is said of it does not decide over that.
        cli.warn(f"mixture/{CLASSES_FILE} of the release could not be read back")
        return
    first, *lines = found.lines()
    sizes = dict(zip(found.classes, found.rows.tolist(), strict=True))
    cli.report(first, class_rows=sizes, class_rows_stddev=found.stddev)
    for line in lines:
        cli.say(line)
    if warning := found.warning():
        cli.warn(warning)
