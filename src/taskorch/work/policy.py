"""Which programs commands may run, and in which folders."""

import os
import shlex
import shutil

from taskorch.domain.argv import as_list, is_line
from taskorch.domain.errors import InvalidInput, shown

IN_SHELLS = {  # programs that are none: shells do these themselves
    "cd": " Shells alone have cd: give the folder as cwd.",
    "export": " Shells alone have export: give variables as env.",
    "source": " Shells alone have source: give variables as env.",
}


class NotAllowed(InvalidInput):
    """The operator has not allowed that program or folder; the text names the setting to change."""


class Policy:
    """Which programs may run: comma-separated names or absolute paths; `*` is every program. Fixed at server start.

    A bare name allows only the file that PATH gives now, not one that appears in front of it later. `folders`: where
    they may run, comma-separated, each with all below it; none named is everywhere.
    """

    def __init__(self, allowed: str, path: str | None = None, folders: str = "") -> None:
        self.path = path if path is not None else os.environ.get("PATH", os.defpath)
        self.names = parts(allowed)
        self._files = {self._find(name) for name in self.names if name != "*"}
        self.roots = tuple(os.path.realpath(os.path.expanduser(folder)) for folder in parts(folders))

    @property
    def allows_any(self) -> bool:
        return bool(self.names)

    def program(self, name: str) -> str:
        """The absolute path of what `name` runs. Raises InvalidInput (not found) or NotAllowed."""
        if not name:
            raise InvalidInput("payload.argv[0] is empty; it must name a program, as in ['git', 'status'].")
        found = self._find(name)
        if found is None and is_line(name):
            raise InvalidInput(f"payload.argv[0] is more than a program. {as_list(name)}")
        if not self.names and not _is_relative(name):
            raise NotAllowed(self._refusal(name))
        found = self.locate(name, "payload.argv[0]")
        if "*" not in self.names and found not in self._files:
            raise NotAllowed(self._refusal(found if name in self.names else name))
        return found

    def folder(self, path: str, what: str) -> str:
        """The real path of a folder to run in; `what` is its name in an error. Raises InvalidInput or NotAllowed.

        What the path leads to may change until a command is there, so the shim looks once more where it really is.
        """
        if not os.path.isabs(path):
            raise InvalidInput(f"{what} {shown(path)} is relative; use an absolute path.")
        if not os.path.isdir(path):
            raise InvalidInput(f"{what} {shown(path)} is not a folder; use one that exists.")
        return self.below(path, what, "cwd")

    def below(self, path: str, what: str, noun: str) -> str:
        """Where an absolute path really leads. Raises NotAllowed when that is neither in nor below an allowed folder.

        `what` is its name in the error, and `noun` what to use instead.
        """
        real = os.path.realpath(path)
        if self.roots and not any(is_below(real, root) for root in self.roots):
            led = "" if real == path else f" (really {shown(real)})"
            folder = real if os.path.isdir(real) else os.path.dirname(real)
            line = ",".join([*self.roots, folder])
            raise NotAllowed(
                f"{what} {shown(path)}{led} is not allowed: on this server commands run below "
                f"{' or '.join(self.roots)}. Use a {noun} there, or ask the user to set "
                f"TASKORCH_ALLOW_DIRS={line} in the environment of taskorch and to restart it."
            )
        return real

    def locate(self, name: str, what: str) -> str:
        """The absolute path of a program, on the list or not; `what` is its name in an error. Raises InvalidInput."""
        if _is_relative(name):
            raise InvalidInput(f"{what} {shown(name)} is a relative path; use a bare name or an absolute path.")
        found = self._find(name)
        if found is None:
            where = "it does not exist or is not executable" if "/" in name else f"not found in PATH={self.path}"
            raise InvalidInput(
                f"{what} {shown(name)}: {where}. Name an installed program or its absolute path."
                f"{IN_SHELLS.get(name, '')}"
            )
        return found

    def _find(self, name: str) -> str | None:
        found = shutil.which(name, path=self.path)
        return found and os.path.abspath(found)  # PATH may hold relative folders, and commands run in another one

    def _refusal(self, name: str) -> str:
        line = ",".join([*self.names, name])
        now = f"only {', '.join(self.names)} may run" if self.names else "no commands may run"
        return (
            f"The command {shown(name)} is not allowed: on this server {now}. Ask the user to set "
            f"TASKORCH_ALLOW_COMMANDS={line} in the environment of taskorch (or * for every program) and to restart it"
            f": `taskorch install HOST --allow-command {shlex.quote(name)}` does so, or the form of the bundle."
        )


def parts(text: str) -> list[str]:
    """The parts of a comma-separated setting."""
    return [part for part in map(str.strip, text.split(",")) if part]


def _is_relative(name: str) -> bool:
    return "/" in name and not name.startswith("/")


def is_below(path: str, root: str) -> bool:
    """Whether a real path is a root or below it."""
    return (path + "/").startswith(root.rstrip("/") + "/")
