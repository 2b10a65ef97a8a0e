"""Exit codes."""

from enum import IntEnum


class Exit(IntEnum):
    """What the exit code of a command says."""

    OK = 0
    FAILED = 1  # a task that was waited for failed or was cancelled; doctor: something must be mended
    USAGE = 2  # what was asked is wrong, or not possible now
    NOT_FOUND = 3  # no such task
    TIMEOUT = 4  # it was not over in time
    STORE = 5  # there is no store, or it cannot be used: busy, full, damaged, of another version
    INTERRUPTED = 130  # by Ctrl-C
