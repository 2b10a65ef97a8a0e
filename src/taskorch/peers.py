"""Server processes on one file: each holds a kernel lock on a file of its own, so that a death is seen at once.

The lock is `lockf`: children do not inherit it. It falls when this process closes any descriptor of the file, so the
file is opened exactly once and never probed from here.
"""

import fcntl
import os
import time
import uuid
from pathlib import Path

_OURS: set[str] = set()  # a second lock on a file of this process would succeed, and closing it would drop the first


class Peers:
    """This process's identity, and who else is alive. Use as a context manager: the lock is held inside."""

    def __init__(self, folder: Path) -> None:
        self.uuid = uuid.uuid4().hex
        self._folder = folder
        self._fd = -1

    def __enter__(self) -> "Peers":
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self._path(self.uuid), flags, 0o600)
        fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _OURS.add(self.uuid)
        os.write(self._fd, f"{os.getpid()} {time.time():.0f}\n".encode())
        return self

    def __exit__(self, *_: object) -> None:
        self._path(self.uuid).unlink(missing_ok=True)
        os.close(self._fd)
        _OURS.discard(self.uuid)

    def is_dead(self, peer_uuid: str) -> bool:
        """Whether that other server's process is gone: its lock is free, or its file was removed in an orderly exit."""
        if peer_uuid in _OURS:
            return False
        try:
            fd = os.open(self._path(peer_uuid), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return True
        except OSError:  # such as too many open files: not known to be dead
            return False
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    def forget(self, peer_uuid: str) -> None:
        """Remove a dead server's file, once its rows are settled."""
        self._path(peer_uuid).unlink(missing_ok=True)

    def _path(self, peer_uuid: str) -> Path:
        return self._folder / f"{peer_uuid or 'unknown'}.lock"
