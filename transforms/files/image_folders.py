"""Images in folders that are named by their labels.

A label is the first folder below the input; its images lie in it or below it, at any
depth.  An input without folders holds unlabelled images.

Folders are the owner's layout and public; files are rows.  So what is *refused*
here depends on names of folders only: no file that comes or goes changes whether a
job starts, or whether the data has labels.  (On object stores a folder exists as
long as something is in it.  A folder or file that can't be read is a broken disk.)
"""

import dataclasses
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from dpgmm_beam.errors import ConfigError
from transforms.files import image_names
from transforms.files.finding import (
    InputFile,
    LeaveOut,
    LeftOut,
    is_folder,
    is_glob,
    leads_to_folder,
    listable,
    literal,
    local_folders,
    match,
    stat_of,
)
from transforms.files.opening import open_ranges, reading
from transforms.files.private import is_local

IMAGE_FOLDER = "image_folder"

NO_FILE = -1
"""The size of what has an image's name and is no regular file: a fifo, a device, a link to nothing."""

_SPLITS = "train training test testing val valid validation dev eval evaluation holdout"
SPLITS = frozenset(_SPLITS.split())
"""Names of folders that are parts of a data set, and no labels, where all of them are such."""

# As folders of pictures in several sizes are called; other numbers may be labels.
_SIZE = re.compile(
    r"\d+x\d+(@\d+x?)?|\d+px|(16|22|24|32|36|48|64|72|96|128|192|224|256|384|512|1024)|scalable|symbolic",
    re.IGNORECASE,
)

# What systems and programs leave in folders of images; copies of the images among it.
_SYSTEM = frozenset({"@eadir", "__macosx", "lost+found", "$recycle.bin", "system volume information"})

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_FAR_READERS = 16


@dataclasses.dataclass(frozen=True, slots=True)
class ImageFile(InputFile):
    """An image, its label and the id of its privacy unit.

    Attributes:
      label: in Unicode's form NFC, as macOS's file names are not; None without labels.
      unit: as it is written; None where a unit is an image, or this one names none.
    """

    label: str | None
    unit: str | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """The folders of an input.

    Attributes:
      roots: each holds a folder for each label; sorted.
      labelled: whether there is any such folder.
    """

    roots: tuple[str, ...]
    labelled: bool


@dataclasses.dataclass(frozen=True)
class Found:
    """What is listed of an input and what is passed over, each sorted by path."""

    images: list[ImageFile]
    left_out: list[LeftOut]


FarFiles = list[tuple[str, tuple[list[str], InputFile]]]
"""Root, names below it, and file, of all files below a folder or a glob of folders; sorted by path."""


def layout(pattern: str, far: FarFiles | None = None) -> Layout | None:
    """How a folder, or a glob of folders, is laid out; None if it is neither.

    Args:
      pattern: the input.
      far: what `far_files` found of it, where that is known already.

    Raises:
      ConfigError: it can't be listed, or the folders at its top are parts of a
        data set (train/, test/) or sizes of one, with the labels below them.
    """
    below: dict[str, list[Sequence[str]]] = {}
    if is_local(pattern):
        with listable(pattern):
            trees = {root: _local_tree(root) for root in local_folders(pattern)}
    else:
        for root, (names, _) in far_files(pattern) if far is None else far:
            below.setdefault(root, []).append(names)
        trees = {root: _far_tree(files) for root, files in sorted(below.items())}
    if not trees:
        return None
    for root, tree in trees.items():
        _check_tree(pattern, root, tree)
        if len(tree) == 1:
            # One level more, as archives often have.
            (name,) = tree
            inner = f"{root.rstrip('/')}/{name}"
            if is_local(pattern):
                with listable(pattern):
                    deeper = _local_tree(inner)
            else:
                deeper = _far_tree(names[1:] for names in below[root] if names[0] == name)
            _check_tree(pattern, inner, deeper)
    return Layout(tuple(trees), any(trees.values()))


def find(pattern: str, labelled: bool = True, far: FarFiles | None = None, level: int = 0) -> Found:
    """The images of a folder, or of a glob of folders, and what else is there.

    Links are followed, each folder once: under the first of its paths, as a
    walk in the order of names meets them.  A file that is there by several names
    (links, or two labels that are one folder) is one row, and as such there once,
    under the first of its paths: twice it would be two.  What has an image's name
    is not opened; what has none that says what it is, is by its first bytes.
    Hidden names are left out.

    Args:
      pattern: the input.
      labelled: whether folders are labels, as `layout` said.
      far: as in `layout`.
      level: which folder below the label's is named by the privacy unit; 0: a unit is an image.  Of several
        names of a file or folder each unit then has its own first one.

    Raises:
      ConfigError: a folder or an image can't be read.
    """
    left_out: list[LeftOut] = []
    images = list_images(pattern, labelled, far, lambda *item: left_out.append(LeftOut(*item)), level)
    return Found(images, sorted(left_out, key=lambda item: item.path))


def list_images(
    pattern: str,
    labelled: bool = True,
    far: FarFiles | None = None,
    leave_out: LeaveOut = lambda path, reason: None,
    level: int = 0,
) -> list[ImageFile]:
    """The images of a folder, sorted by path: see `find`."""
    if is_local(pattern):
        with listable(pattern):
            return list(_local_images(local_folders(pattern), labelled, leave_out, level))
    return list(_far_images(far_files(pattern) if far is None else far, labelled, leave_out, level))


def files_below(pattern: str, wanted: Callable[[str], bool], far: FarFiles | None = None) -> list[InputFile]:
    """Files with names of some kind, at any depth below a folder or a glob of folders; sorted, each once.

    Raises:
      ConfigError: they can't be listed, or one is no regular file.
    """
    if not is_local(pattern):
        return [
            file
            for _, (names, file) in (far_files(pattern) if far is None else far)
            if wanted(names[-1]) and all(map(_is_shown, names))
        ]
    found: dict[object, InputFile] = {}
    with listable(pattern):
        paths = [
            entry.path
            for _, entry in _walk(local_folders(pattern), lambda path, reason: None)
            if wanted(entry.name)
        ]
        for path in sorted(filter(lambda path: _is_shown(os.path.basename(path)), paths)):
            status = stat_of(path)
            if status is None or not stat.S_ISREG(status.st_mode):
                raise ConfigError("input", pattern, f"be regular files; {path} is none")
            file = InputFile(path, status.st_size, status.st_mtime)
            found.setdefault(identity_of(path, status), file)
    return list(found.values())


def base(pattern: str) -> str:
    """The folder that all roots of an input lie in, or the only one."""
    if not is_glob(pattern) or is_folder(pattern):
        return pattern.rstrip("/")
    parts = pattern.split("/")
    return "/".join(parts[: next(number for number, part in enumerate(parts) if is_glob(part))])


def _is_shown(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _SYSTEM


def _why_hidden(name: str) -> str:
    return "hidden, by its name" if name.startswith(".") else "of the system, by its name"


def _unit(folders: Sequence[str], level: int) -> str | None:
    """The folder, of those on the way to a file or folder from its label's on, that names its unit."""
    return folders[level] if level and level < len(folders) else None


def _label(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def check_readable(path: str) -> None:
    """Raises PermissionError for a regular file that this process may not read; opens none that it may."""
    if not os.access(path, os.R_OK):
        # It was asked for the real user; what counts is what opening says.
        os.close(os.open(path, _READ))


def identity_of(path: str, status: os.stat_result) -> object:
    """What all names of a file or folder share."""
    # Some file systems give no numbers.
    return (status.st_dev << 64) + status.st_ino if status.st_ino else os.path.realpath(path)


# Layouts ---------------------------------------------------------------------------------------


def _local_tree(root: str) -> dict[str, list[str]]:
    """The folders in a folder, each with those in it."""
    return {
        os.path.basename(path): [os.path.basename(below) for below in _shown_folders(path)]
        for path in _shown_folders(root)
    }


def _shown_folders(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.path for entry in entries if _is_shown(entry.name) and leads_to_folder(entry))


def _far_tree(files: Iterable[Sequence[str]]) -> dict[str, list[str]]:
    tree: dict[str, list[str]] = {}
    for first, *below, _ in (names for names in files if len(names) > 1):
        if _is_shown(first):
            children = tree.setdefault(first, [])
            if below and _is_shown(below[0]) and below[0] not in children[-1:]:
                children.append(below[0])
    return {name: sorted(set(children)) for name, children in sorted(tree.items())}


def _check_tree(pattern: str, root: str, tree: Mapping[str, Sequence[str]]) -> None:
    """Refuses folders that are no labels, by their names and those of the folders in them."""
    deep = {name: set(below) for name, below in tree.items() if below}
    parts = [name for name in deep if name.lower() in SPLITS]
    if parts and (all(name.lower() in SPLITS for name in tree) or _alike([deep[name] for name in parts])):
        _refuse_parts(pattern, root, parts, "parts of a data set")
    sizes = [name for name in deep if _SIZE.fullmatch(name)]
    if len(sizes) == len(tree) and _alike([deep[name] for name in sizes]):
        _refuse_parts(pattern, root, sizes, "sizes")


def _alike(children: Sequence[set[str]]) -> bool:
    """Whether several folders have folders of the same names in them."""
    return len(children) > 1 and bool(set.intersection(*children))


def _refuse_parts(pattern: str, root: str, names: Sequence[str], what: str) -> None:
    root = root.rstrip("/")
    shown = [f"{name}/" for name in names[:5]]
    listed = " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
    raise ConfigError(
        "input",
        pattern,
        f"be the folder that holds a folder for each label; {root} holds {listed}, which look like {what}"
        f" with the labels below them: name one of them, like {root}/{names[0]}",
    )


# The local disk --------------------------------------------------------------------------------


def _local_images(
    roots: Sequence[str], labelled: bool, leave_out: LeaveOut, level: int
) -> Iterator[ImageFile]:
    found = _local_candidates(roots, labelled, leave_out, level)
    seen: dict[object, str] = {}
    # Paths are there once: what comes behind them is never compared.
    for path, label, unit, linked in sorted(found):
        status = stat_of(path)
        name = os.path.basename(path)
        by_name = image_names.is_image(name)
        if status is None or not stat.S_ISREG(status.st_mode):
            # What is no link has just been deleted, as if it had been so before.
            if status is not None or linked:
                if by_name:
                    yield ImageFile(path, NO_FILE, 0.0, label, unit)
                else:
                    leave_out(path, "no regular file" if status else "a link to nothing")
            continue
        first = seen.setdefault((identity_of(path, status), unit), path)
        if first != path:
            leave_out(path, f"the same file as {first}")
            continue
        if not by_name and (reason := image_names.why_none_inside(_local_head(path))):
            leave_out(path, reason)
            continue
        check_readable(path)
        yield ImageFile(path, status.st_size, status.st_mtime, label, unit)


def _local_candidates(
    roots: Sequence[str], labelled: bool, leave_out: LeaveOut, level: int
) -> Iterator[tuple[str, str | None, str | None, bool]]:
    """Path, label, unit and whether it is a link, of all that may be an image by name and place; unsorted."""
    for root, entry in _walk(roots, leave_out, level):
        start = len(root.rstrip("/")) + 1
        first, *below = entry.path[start:].split("/", 1)
        outside = labelled and not below
        if outside and entry.is_symlink() and stat_of(entry.path) is None:
            # It may have been a label.
            leave_out(entry.path, "a link to nothing")
        elif reason := _why_not_listed(entry.name, outside):
            leave_out(entry.path, reason)
        else:
            unit = _unit(entry.path[start:].split("/")[:-1], level)
            yield entry.path, _label(first) if labelled else None, unit, entry.is_symlink()


def _why_not_listed(name: str, outside_labels: bool) -> str:
    if not _is_shown(name):
        return _why_hidden(name)
    if not image_names.is_image(name) and (reason := image_names.why_none(name)):
        return reason
    if not outside_labels:
        return ""
    if "\\" in name:
        return "in no label's folder: its name has a backslash, which is no folder here"
    return "in no label's folder: directly in the input, beside the labels"


def _walk(roots: Sequence[str], leave_out: LeaveOut, level: int = 0) -> Iterator[tuple[str, os.DirEntry]]:
    """Whatever is no folder below the roots, with its root; each folder is entered once, by each unit.

    Raises:
      OSError: a folder can't be listed.
    """
    entered: dict[object, str] = {}
    waiting = [(root, root) for root in reversed(roots)]
    while waiting:
        root, folder = waiting.pop()
        status = stat_of(folder)
        if status is None:
            continue
        unit = _unit(folder[len(root.rstrip("/")) + 1 :].split("/"), level)
        first = entered.setdefault((identity_of(folder, status), unit), folder)
        if first != folder:
            leave_out(folder, f"the same folder as {first}")
            continue
        folders = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if not leads_to_folder(entry):
                    yield root, entry
                elif _is_shown(entry.name):
                    folders.append(entry.path)
                else:
                    leave_out(entry.path, _why_hidden(entry.name))
        waiting.extend((root, path) for path in sorted(folders, reverse=True))


def _local_head(path: str) -> bytes:
    """The first bytes of a regular file."""
    number = os.open(path, _READ)
    try:
        return os.read(number, image_names.SNIFFED_BYTES)
    finally:
        os.close(number)


# Other file systems ----------------------------------------------------------------------------


def far_files(pattern: str) -> FarFiles:
    """One listing of a folder, or of a glob of folders, on no local disk."""
    pattern = pattern.rstrip("/")
    depth = pattern.count("/") + 1
    listed = []
    folder = literal(pattern) if is_folder(pattern) else pattern
    for file in match(pattern, folder + "/**"):
        names = file.path.split("/")
        # Some stores mark folders by objects whose names end like paths of folders.
        if len(names) > depth:
            listed.append(("/".join(names[:depth]), (names[depth:], file)))
    return sorted(listed, key=lambda item: item[1][1].path)


def _far_images(far: FarFiles, labelled: bool, leave_out: LeaveOut, level: int) -> Iterator[ImageFile]:
    found: list[tuple[InputFile, str | None, str | None]] = []
    unnamed: list[InputFile] = []
    for _, (names, file) in far:
        if not names[-1]:
            continue
        hidden = next((name for name in names[:-1] if not _is_shown(name)), None)
        reason = _why_hidden(hidden) if hidden else _why_not_listed(names[-1], labelled and len(names) == 1)
        if reason:
            leave_out(file.path, reason)
            continue
        if not image_names.is_image(names[-1]):
            unnamed.append(file)
        found.append((file, _label(names[0]) if labelled else None, _unit(names[:-1], level)))
    with ThreadPoolExecutor(_FAR_READERS) as readers:
        reasons = dict(zip((file.path for file in unnamed), readers.map(_far_reason, unnamed), strict=True))
    for file, label, unit in found:
        if reason := reasons.get(file.path, ""):
            leave_out(file.path, reason)
        else:
            yield ImageFile(file.path, file.size, file.modified, label, unit)


def _far_reason(file: InputFile) -> str:
    with reading(file.path), open_ranges(file.path) as opened:
        return image_names.why_none_inside(opened.read_at(min(image_names.SNIFFED_BYTES, file.size), 0))
