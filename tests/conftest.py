"""What holds for every test."""

import signal


def pytest_configure():
    """Signals as a terminal's command has them, for the processes that tests start.

    A script's background command ignores SIGINT and SIGQUIT, and so does all that it starts:
    tests that end processes by them would wait for minutes, and fail.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
