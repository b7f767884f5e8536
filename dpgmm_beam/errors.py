"""The one exception that a user's mistake raises."""


class ConfigError(ValueError):
    """A configuration that is refused before any data is read.

    The message is one sentence that names the argument, its value and what is
    allowed.  The command line prints it and exits 2 without a traceback.

    Args:
      argument: the option as a user writes it, e.g. ``--epsilon``.
      value: the value that was given.
      allowed: what is allowed, to follow the word "must", e.g. ``be a finite
        number above 0``.

    >>> raise ConfigError("--epsilon", -1.0, "be a finite number above 0")
    Traceback (most recent call last):
    ...
    dpgmm_beam.errors.ConfigError: --epsilon=-1.0 is refused: it must be a finite number above 0.
    """

    def __init__(self, argument: str, value: object, allowed: str):
        self.argument = argument
        self.value = value
        self.allowed = allowed
        super().__init__(f"{argument}={value} is refused: it must {allowed}.")

    def __reduce__(self):
        return ConfigError, (self.argument, self.value, self.allowed)
