"""The exceptions that what a user asks for raises."""

_VALUE_CHARACTERS, _SENTENCE_CHARACTERS = 200, 1000


class ConfigError(ValueError):
    """A configuration that is refused before any data is read.

    The message is one line: a sentence that names the argument, its value and
    what is allowed.  The command line prints it and exits 2 without a traceback.

    Args:
      argument: the field, e.g. ``epsilon``; where a command is meant, the option as a user writes it.
        The command line makes the option of a field.
      value: the value that was given.
      allowed: what is allowed, to follow the word "must", e.g. ``be a finite
        number above 0``.

    >>> raise ConfigError("epsilon", -1.0, "be a finite number above 0")
    Traceback (most recent call last):
    ...
    dpgmm_beam.errors.ConfigError: epsilon=-1.0 is refused: it must be a finite number above 0.
    """

    def __init__(self, argument: str, value: object, allowed: str):
        self.argument = argument
        self.value = value
        self.allowed = allowed
        super().__init__(
            f"{printable(argument)}={printable(value)} is refused:"
            f" it must {printable(allowed, _SENTENCE_CHARACTERS)}."
        )

    def __reduce__(self):
        return ConfigError, (self.argument, self.value, self.allowed)


class BudgetError(ConfigError):
    """A release that would overspend the budget of its data; the command line exits 3."""

    def __reduce__(self):
        return BudgetError, (self.argument, self.value, self.allowed)


class PassingError(RuntimeError):
    """Something outside, such as a database, could not be used: another try may do.

    The message is one sentence; the command line prints it and exits 1.
    """


def printable(value: object, most: int | None = _VALUE_CHARACTERS) -> str:
    r"""A value's text in one line that a terminal can't take for a command.

    Args:
      value: anything; its `str` is shown.
      most: characters; longer texts are cut.  None: they are not.

    >>> print(printable("a\n\x1b[31mb\udcff"))
    a\n\x1b[31mb\udcff
    >>> printable("x" * 300, 5)
    'xxxxx...'
    """
    text = str(value)
    shown = text[:most]
    rest = "..." if len(shown) < len(text) else ""
    if not shown.isprintable():
        shown = "".join(each if each.isprintable() else repr(each)[1:-1] for each in shown)
    return shown + rest
