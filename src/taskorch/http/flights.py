"""The requests that are being answered: bounded in number, and all of them can be ended."""

from collections.abc import Generator
from contextlib import contextmanager

import anyio

MOST = 256  # as many as on stdio


class Flights:
    """At most `most` at a time. After `end` there are none."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._scopes: set[anyio.CancelScope] = set()
        self.ended = False

    @property
    def full(self) -> bool:
        return self.ended or len(self._scopes) >= self._most

    @contextmanager
    def one(self) -> Generator[anyio.CancelScope]:
        """The scope of one request more, which `end` cancels."""
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield scope
            finally:
                self._scopes.discard(scope)

    def end(self) -> None:
        """Take no more, and cancel those under way."""
        self.ended = True
        for scope in tuple(self._scopes):
            scope.cancel()
