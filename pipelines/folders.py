"""Where things are kept unless the user says otherwise."""

import os


def default_folder() -> str:
    """The user's own folder for private state, by the XDG convention; not absolute where there is none."""
    # For an empty HOME `expanduser` gives the root folder.
    home = "~" if os.environ.get("HOME") == "" else os.path.expanduser("~")
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(home, ".local", "state")
    return os.path.join(state, "dpgmm")
