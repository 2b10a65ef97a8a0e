"""The environment of programs that we start: what they inherit."""

import os
from collections.abc import Collection

PASSED = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "USER", "SHELL", "TERM")


def inherited(also: Collection[str] = ()) -> dict[str, str]:
    """Our own variables that a program gets: those that every program needs, and those named in `also`."""
    names = [name for name in os.environ if name in PASSED or name.startswith("LC_") or name in also]
    return {name: os.environ[name] for name in names}
