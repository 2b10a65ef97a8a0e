"""A kind of work, as far as those need to know it who create its tasks and tell of them."""

from collections.abc import Mapping
from typing import Any, Protocol


class Kind(Protocol):
    """What creating a task needs to know of its kind, and what a client is told of it."""

    @property
    def description(self) -> str:
        """What it does, in one line; empty where nobody has said it."""
        ...

    @property
    def max_attempts(self) -> int:
        """The default; the task may say otherwise."""
        ...

    @property
    def timeout_seconds(self) -> float | None:
        """The default limit of one attempt, None for the server's; the task may say otherwise."""
        ...

    @property
    def in_process(self) -> bool:
        """Whether its work is done inside the server's own process, where nobody can kill it."""
        ...

    def payload_schema(self) -> dict[str, Any] | None:
        """The JSON schema of its payloads; None: any object."""
        ...

    def check(self, payload: Mapping[str, Any]) -> None:
        """Raise InvalidInput when the kind could not run that payload.

        Of one that takes results of other tasks that is asked of what is known of it already.
        """
        ...

    def shown(self, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        """The payload as replies may show it: they are passed on, and what is secret has no place in them."""
        ...
