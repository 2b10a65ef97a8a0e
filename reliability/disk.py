"""A disk that forgets: one folder's files, each with what is on the platter for certain and what is only on its way.

It promises no more than POSIX does: a sync of a file keeps that file's content, a sync of the folder keeps the names.
Everything else may be there after a power cut or not, in any mixture.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

SECTOR = 512  # bytes that a disk writes whole or not at all


@dataclass(frozen=True, slots=True)
class Write:
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    size: int


@dataclass(eq=False, slots=True)
class File:
    synced: bytearray = field(default_factory=bytearray)
    pending: list["Change"] = field(default_factory=list["Change"])


@dataclass(frozen=True, slots=True)
class Entries:
    """A change of the folder that happens whole or not at all; None: the name goes."""

    names: dict[str, File | None]


Change = Write | Truncate | Entries
Keep = Callable[[Sequence[Change]], Sequence[Change]]  # what of the pending changes, oldest first, a cut leaves


class Disk:
    """`names` is the folder as the running system sees it."""

    def __init__(self) -> None:
        self.names: dict[str, File] = {}
        self._synced: dict[str, File] = {}
        self._pending: list[Change] = []

    def open(self, name: str, *, truncate: bool = False) -> None:
        """Make the file if it does not exist."""
        if name not in self.names:
            self._rename({name: File()})
        elif truncate:
            self.truncate(name, 0)

    def write(self, name: str, offset: int, data: bytes) -> None:
        self.names[name].pending.append(Write(offset, data))

    def truncate(self, name: str, size: int) -> None:
        self.names[name].pending.append(Truncate(size))

    def unlink(self, name: str) -> None:
        self._rename({name: None})

    def rename(self, old: str, new: str) -> None:
        self._rename({new: self.names[old], old: None})

    def sync(self, name: str) -> None:
        """fsync or fdatasync of a file: its content is certain, its name is not."""
        file = self.names[name]
        _apply(file.synced, file.pending)
        file.pending.clear()

    def sync_folder(self) -> None:
        _enter(self._synced, self._pending)
        self._pending.clear()

    def after_cut(self, keep: Keep) -> dict[str, bytes]:
        """The files that are found when the power is back; the disk itself stays as it is."""
        names = dict(self._synced)
        _enter(names, keep(self._pending))
        found: dict[str, bytes] = {}
        for name, file in names.items():
            content = bytearray(file.synced)
            _apply(content, keep(file.pending))
            found[name] = bytes(content)
        return found

    def _rename(self, names: dict[str, File | None]) -> None:
        change = Entries(names)
        _enter(self.names, [change])
        self._pending.append(change)


def nothing(pending: Sequence[Change]) -> Sequence[Change]:
    """The disk had written none of it."""
    return ()


def everything(pending: Sequence[Change]) -> Sequence[Change]:
    """The disk had written all of it."""
    return pending


def some(chance: random.Random) -> Keep:
    """The disk had written any of it: of late changes perhaps, of early ones perhaps not."""
    share = chance.random()
    return lambda pending: [change for change in pending if chance.random() < share]


def torn(chance: random.Random) -> Keep:
    """Like `some`, of each write any sectors."""
    keep = some(chance)
    return lambda pending: keep([part for change in pending for part in sectors(change)])


def sectors(change: Change) -> Iterable[Change]:
    if not isinstance(change, Write):
        return [change]
    end = change.offset + len(change.data)
    first = change.offset - change.offset % SECTOR
    edges = [change.offset, *range(first + SECTOR, end, SECTOR), end]
    return [Write(start, change.data[start - change.offset : stop - change.offset]) for start, stop in pairwise(edges)]


def _apply(content: bytearray, changes: Iterable[Change]) -> None:
    for change in changes:
        match change:
            case Write(offset, data):
                _extend(content, offset)
                content[offset : offset + len(data)] = data
            case Truncate(size):
                _extend(content, size)
                del content[size:]
            case Entries():
                raise TypeError("a file holds no names")


def _extend(content: bytearray, size: int) -> None:
    """What lies between is zeros."""
    if len(content) < size:
        content.extend(bytes(size - len(content)))


def _enter(names: dict[str, File], changes: Iterable[Change]) -> None:
    for change in changes:
        assert isinstance(change, Entries)
        for name, file in change.names.items():
            if file is None:
                names.pop(name, None)
            else:
                names[name] = file
