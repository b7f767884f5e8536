"""What an input holds that is none of its rows: exact, so for its owner and the private folder only."""

from transforms.files import image_folders, image_lists, tars
from transforms.files.finding import LeftOut
from transforms.files.inputs import InputDescription


def left_out(description: InputDescription) -> list[LeftOut]:
    """Files, folders, lines and members of an input that its listing passes over, sorted by path.

    Images that are listed and turn out to be none, or that are not there, are
    rows; embedding sets them aside with reasons of its own.  Tars are read for this.
    """
    pattern, columns = description.pattern, description.columns
    if description.kind == image_folders.IMAGE_FOLDER:
        return image_folders.find(pattern, description.labelled, level=columns.unit_level).left_out
    if description.kind == image_lists.IMAGE_LIST:
        return image_lists.find(pattern, columns, description.labelled).left_out
    if description.kind == tars.IMAGE_TARS:
        members = [item for file in tars.list_tars(pattern) for item in tars.left_out(file.path, columns)]
        return sorted(members, key=lambda item: item.path)
    return []
