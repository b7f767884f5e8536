"""The command `dpgmm`, also as `python -m dpgmm_beam`: starts the programs of `pipelines`.

`pipelines` and `transforms` are names that other projects have, too.  Another one that Python
finds first is told here in a sentence, before its code runs among private rows.
"""

import importlib
import importlib.util
import os
import sys

from dpgmm_beam.errors import printable


def shadowed() -> str:
    """Why the packages that Python finds are not this program's, in a sentence; "" where they are."""
    own = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    for name in ("pipelines", "transforms"):
        found = importlib.util.find_spec(name)
        places = [] if found is None else [*(found.submodule_search_locations or ()), found.origin or ""]
        if os.path.join(own, name) not in map(os.path.realpath, places):
            other = places[0] if places else "nowhere"
            return (
                f"{name} is {printable(other)} here and not the package in {printable(own)}: take its folder"
                " off PYTHONPATH, rename it, or install dpgmm-beam into an environment of its own"
            )
    return ""


def main() -> int:
    """Runs the verb that the command line names, and ends the process with its status."""
    if reason := shadowed():
        sys.stderr.write(f"dpgmm: {reason}\n")
        return 2
    status = importlib.import_module("pipelines.cli").main()
    # Python's own end stops threads wherever they are.  In C++ that can be a crash ("terminate called
    # without an active exception"), and a release that was made would end with status 134.
    importlib.import_module("pipelines.signals").end(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
