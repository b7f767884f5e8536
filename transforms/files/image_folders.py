"""Images in folders that are named by their labels."""

import dataclasses
import os
import stat
from collections.abc import Iterator

from transforms.files.finding import InputFile, is_folder, leads_to_folder, listable, literal, match, stat_of
from transforms.files.private import is_local

IMAGE_FOLDER = "image_folder"

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")

NO_FILE = -1
"""The size of what has an image's name and is no regular file: a fifo, a device, a link to nothing."""


@dataclasses.dataclass(frozen=True)
class ImageFile(InputFile):
    """An image in a folder that is named by its label."""

    label: str


def list_images(folder: str) -> list[ImageFile]:
    """The images LABEL/*.png|jpg|jpeg of a folder, sorted by path; hidden names are left out.

    Links are followed, also those of label folders.  A file that is there by
    several names (links, or two labels that are one folder) is one row, and as
    such there once, under the first of its paths: twice it would be two.

    Raises:
      ConfigError: the folder, or one of its labels', can't be listed.
    """
    if is_local(folder):
        with listable(folder):
            return list(_local_images(folder.rstrip("/") or "/"))
    images = []
    for file in match(folder, literal(folder.rstrip("/")) + "/*/*"):
        head, name = os.path.split(file.path)
        label = os.path.basename(head)
        if _is_image_name(name) and not label.startswith("."):
            images.append(ImageFile(file.path, file.size, file.modified, label))
    return sorted(images, key=lambda image: image.path)


def _is_image_name(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def _label_folders(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and leads_to_folder(entry):
                yield entry.path


def _image_entries(label: str) -> Iterator[os.DirEntry]:
    with os.scandir(label) as entries:
        for entry in entries:
            if _is_image_name(entry.name) and not leads_to_folder(entry):
                yield entry


def _local_images(folder: str) -> Iterator[ImageFile]:
    entries = [entry for label in _label_folders(folder) for entry in _image_entries(label)]
    seen = set()
    for entry in sorted(entries, key=lambda entry: entry.path):
        label = os.path.basename(os.path.dirname(entry.path))
        found = stat_of(entry.path)
        if found is None:
            # What is no link has just been deleted, as if it had been so before.
            if entry.is_symlink():
                yield ImageFile(entry.path, NO_FILE, 0.0, label)
            continue
        identity = found.st_dev, found.st_ino
        if identity not in seen:
            seen.add(identity)
            size = found.st_size if stat.S_ISREG(found.st_mode) else NO_FILE
            yield ImageFile(entry.path, size, found.st_mtime, label)


def has_images(pattern: str) -> bool:
    if is_local(pattern):
        if not os.path.isdir(pattern):
            return False
        with listable(pattern):
            # Every label's folder is opened, so that one that can't be is named before the job runs.
            labels = [any(_image_entries(label)) for label in _label_folders(pattern)]
            return any(labels)
    if not is_folder(pattern):
        return False
    folder = literal(pattern.rstrip("/"))
    cases = ("".join(f"[{c}{c.upper()}]" for c in suffix[1:]) for suffix in IMAGE_SUFFIXES)
    return any(match(pattern, f"{folder}/*/*.{case}", limit=1) for case in cases)
