"""Images that are named as public ones, and must not come from where private things are kept."""

import os

from dpgmm_beam.decoders.retrieval import MARKER
from dpgmm_beam.errors import ConfigError
from pipelines.folders import default_folder
from pipelines.paths import OWN_FOLDERS
from transforms.files.private import is_local


def check_public(argument: str, path: str, private_dir: str | None, gallery: bool = False) -> None:
    """Checks that a path lies in no private folder and no cache of embeddings.

    Args:
      argument: the option.
      path: a file, a folder or a glob; on other file systems nothing can be told.
      private_dir: `--private-dir`; None: the default.
      gallery: whether it may be a cache of embeddings, which whoever names it says are of public images.

    Raises:
      ConfigError: it is not so.
    """
    if not is_local(path):
        return
    place = os.path.realpath(path)
    private = os.path.realpath(private_dir or default_folder())
    if place == private or place.startswith(private.rstrip(os.sep) + os.sep):
        raise ConfigError(argument, path, f"be public, and not lie in the private folder {private}")
    while True:
        if _is_private_folder(place):
            raise ConfigError(argument, path, f"be public, and not lie in {place}, which keeps private runs")
        if not gallery and os.path.isfile(os.path.join(place, MARKER)):
            raise ConfigError(argument, path, f"hold public images, not embeddings, as {place} does")
        above = os.path.dirname(place)
        if above == place:
            return
        place = above


def _is_private_folder(place: str) -> bool:
    """Whether a folder looks like the private one of a release: two of its own folders, closed to others."""
    found = [os.path.join(place, name) for name in OWN_FOLDERS]
    return sum(os.path.isdir(each) and not os.stat(each).st_mode & 0o077 for each in found) >= 2
