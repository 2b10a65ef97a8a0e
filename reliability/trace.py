"""What a program does to the files of a folder, told by strace: each write, rename and sync, in order."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

CANNOT_TRACE = 77  # exit code: nothing was proved, as strace cannot run
CALLS = "write,pwrite64,pwritev,pwritev2,ftruncate,rename,renameat,renameat2,unlink,unlinkat,fsync,fdatasync,openat"
STRACE = ("strace", "-f", "--seccomp-bpf", "-y", "-xx", "-s", "1000000", "-e", f"trace={CALLS}", "-e", "signal=none")
HEX = r"((?:\\x[0-9a-f]{2})*)"
CALL = re.compile(r"(\d+) +(\w+)\((.*)", re.DOTALL)
RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)", re.DOTALL)
ON_FILE = re.compile(rf"\d+<{HEX}>(\(deleted\))?(?:, (.*))?")
ON_PATH = re.compile(rf'AT_FDCWD<{HEX}>, "{HEX}"(.*)|"{HEX}"(.*)')
WRITTEN = re.compile(rf'"{HEX}", \d+(?:, (\d+))?')

Event = tuple[str, tuple[Any, ...]]  # a method of Disk and its arguments, or "ack" and a line of the child


def why_not() -> str | None:
    """What keeps strace from running here; None: nothing."""
    try:
        tried = subprocess.run([*STRACE, "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return None if tried.returncode == 0 else tried.stderr.strip() or f"strace ended with {tried.returncode}"


class Recording:
    """Reads a trace; `wanted` says which files of the folder count, by their names.

    A write counts from where it began, all else from where it had returned.
    """

    def __init__(self, folder: Path, wanted: Callable[[str], bool]) -> None:
        self._wanted = wanted
        self._folder = str(folder.resolve())
        self._mark = "".join(f"\\x{byte:02x}" for byte in self._folder.encode())
        self._begun: dict[str, str] = {}

    def events(self, lines: Iterable[str]) -> Iterator[Event]:
        for line in lines:
            if resumed := RESUMED.match(line):
                if begun := self._begun.pop(resumed[1], None):
                    yield from self._event(*self._call(begun + resumed[2]))
            elif self._mark in line or " write(1<" in line:
                name, text = self._call(line)
                writes = name.startswith(("write", "pwrite"))
                if "<unfinished ...>" in line and not writes:
                    self._begun[line.split(" ", 1)[0]] = line.partition("<unfinished ...>")[0]
                else:
                    yield from self._event(name, text)

    @staticmethod
    def _call(line: str) -> tuple[str, str]:
        found = CALL.match(line)
        assert found, line[:200]
        return found[2], found[3]

    def _event(self, call: str, text: str) -> Iterator[Event]:
        if call == "write" and text.startswith("1<"):
            yield from (("ack", tuple(json.loads(line))) for line in _said(text))
        elif not re.search(r"\) += -1 ", text[-80:]):
            yield from self._of_path(call, text) if ON_PATH.match(text) else self._of_file(call, text)

    def _of_path(self, call: str, text: str) -> Iterator[Event]:
        found = ON_PATH.match(text)
        assert found
        name = self._name(found[2] or found[4])
        if name and call == "openat" and "O_CREAT" in found[3]:
            yield "open", (name,)
        elif name and call in ("unlink", "unlinkat"):
            yield "unlink", (name,)
        elif name and call != "openat":
            raise ValueError(f"{call} of {name}: not in the model")

    def _of_file(self, call: str, text: str) -> Iterator[Event]:
        found = ON_FILE.match(text)
        assert found, f"{call}({text[:200]}: not in the model"
        if call in ("fsync", "fdatasync") and decoded(found[1]).decode() == self._folder:
            yield "sync_folder", ()
        elif (name := self._name(found[1])) and not found[2]:
            yield self._change(call, name, found[3] or "")

    def _change(self, call: str, name: str, rest: str) -> Event:
        if call in ("fsync", "fdatasync"):
            return "sync", (name,)
        if call == "ftruncate":
            return "truncate", (name, int(rest.partition(")")[0]))
        written = WRITTEN.match(rest)
        if call != "pwrite64" or not written or not written[2]:
            raise ValueError(f"{call} of {name}: not in the model")
        return "write", (name, int(written[2]), decoded(written[1]))

    def _name(self, path: str) -> str | None:
        """The name of a file that counts."""
        folder, _, name = decoded(path).decode().rpartition("/")
        return name if folder == self._folder and self._wanted(name) else None


def _said(text: str) -> list[bytes]:
    found = WRITTEN.search(text)
    assert found, text[:200]
    return decoded(found[1]).splitlines()


def decoded(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))
