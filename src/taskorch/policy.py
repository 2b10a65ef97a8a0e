"""Which programs commands may run."""

import os
import shutil

from taskorch.errors import InvalidInput, shown


class NotAllowed(InvalidInput):
    """The operator has not allowed that program; the text names the setting to change."""


class Policy:
    """Which programs may run: comma-separated names or absolute paths; `*` is every program. Fixed at server start.

    A bare name allows only the file that PATH gives now, not one that appears in front of it later.
    """

    def __init__(self, allowed: str, path: str | None = None) -> None:
        self.path = path if path is not None else os.environ.get("PATH", os.defpath)
        self.names = [name for name in (part.strip() for part in allowed.split(",")) if name]
        self._files = {self._find(name) for name in self.names if name != "*"}

    @property
    def allows_any(self) -> bool:
        return bool(self.names)

    def program(self, name: str) -> str:
        """The absolute path of what `name` runs. Raises InvalidInput (not found) or NotAllowed."""
        if not name:
            raise InvalidInput("payload.argv[0] is empty; it must name a program, as in ['git', 'status'].")
        if "/" in name and not name.startswith("/"):
            raise InvalidInput(
                f"payload.argv[0] {shown(name)} is a relative path; use a bare name or an absolute path."
            )
        if not self.names:
            raise NotAllowed(self._refusal(name))
        found = self._find(name)
        if found is None:
            where = "it does not exist or is not executable" if "/" in name else f"not found in PATH={self.path}"
            raise InvalidInput(
                f"payload.argv[0] {shown(name)}: {where}. Name an installed program or its absolute path."
            )
        if "*" not in self.names and found not in self._files:
            raise NotAllowed(self._refusal(found if name in self.names else name))
        return found

    def _find(self, name: str) -> str | None:
        found = shutil.which(name, path=self.path)
        return found and os.path.abspath(found)  # PATH may hold relative folders, and commands run in another one

    def _refusal(self, name: str) -> str:
        line = ",".join([*self.names, name])
        now = f"only {', '.join(self.names)} may run" if self.names else "no commands may run"
        return (
            f"The command {shown(name)} is not allowed: on this server {now}. Ask the user to set "
            f"TASKORCH_ALLOW_COMMANDS={line} in the environment of taskorch (or * for every program) and to restart it."
        )
