"""What is registered under a name, here or by a package that is installed beside this one."""

import importlib.metadata
from collections.abc import Mapping
from typing import TypeVar

from dpgmm_beam.errors import ConfigError

Registered = TypeVar("Registered")


def find(kind: str, spec: str, registry: Mapping[str, Registered], group: str) -> tuple[Registered, str]:
    """What a spec NAME or NAME:ARGUMENT names, and its argument.

    Args:
      kind: of what is registered, for the refusal.
      registry: by name; loading an entry point's module adds to it.
      group: of the entry points that are looked for under a name that is not there.

    Raises:
      ConfigError: nobody has registered the name.

    >>> find("encoder", "dct:28", {"dct": "a picture's own"}, "no.such.group")
    ("a picture's own", '28')
    """
    name, _, argument = spec.partition(":")
    if name not in registry:
        for entry_point in importlib.metadata.entry_points(group=group, name=name):
            entry_point.load()
    if name not in registry:
        raise ConfigError(kind, spec, f"be one of {', '.join(sorted(registry))} (NAME or NAME:ARGUMENT)")
    return registry[name], argument
