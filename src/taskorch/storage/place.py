"""The state folder: whether tasks may be kept there, whose its files are, and how a damaged database is moved aside.

Nothing here opens the database, its `-wal` or its `-shm`: closing such a descriptor drops every lock that SQLite holds
in this process. An empty file is made, which nobody can have opened before.
"""

import fcntl
import logging
import os
import stat
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from taskorch.domain.errors import StoreError

MOUNTS = Path("/proc/self/mountinfo")
BESIDE = ("", "-wal", "-shm")  # what SQLite adds to a database's name
LEAST_FREE_BYTES = 50 << 20  # with less on its disk, no task is started
OPENING_SECONDS = 30.0  # how long to wait for another server that opens (and perhaps converts) the file
SHARED = {
    *("9p", "acfs", "afpfs", "afs", "beegfs", "ceph", "cifs", "coda", "fakeowner", "fhgfs", "glusterfs", "gpfs"),
    *("grpcfuse", "lustre", "ncpfs", "nfs", "nfs4", "orangefs", "osxfs", "prl_fs", "pvfs2", "smb2", "smb3", "smbfs"),
    *("vboxsf", "virtiofs", "vmhgfs", "webdav"),
}
SHARED_FUSE = SHARED | {
    *("curlftpfs", "davfs", "davfs2", "gcsfuse", "goofys", "google-drive-ocamlfuse", "gvfsd-fuse", "juicefs", "mfs"),
    *("onedrive", "portal", "rclone", "s3fs", "seaweedfs", "sshfs", "vmhgfs-fuse"),
}
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted file system: where, and its kind as the kernel names it."""

    point: str
    kind: str

    @property
    def is_shared(self) -> bool:
        """Whether its files may belong to more than one kernel, so that SQLite's locks mean nothing there."""
        outer, _, inner = self.kind.partition(".")
        return (inner in SHARED_FUSE) if outer == "fuse" else (self.kind in SHARED)


def mount_of(folder: Path, mounts: Path = MOUNTS) -> Mount | None:
    """The file system on which a folder is, or would be; None where the system does not tell (other than Linux)."""
    try:
        lines = mounts.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
    place = os.path.realpath(folder)
    found: Mount | None = None
    for mount in filter(None, map(_mount, lines)):
        holds = mount.point in ("/", place) or place.startswith(mount.point + "/")
        # Of two at one point the later one hides the earlier.
        if holds and (found is None or len(mount.point) >= len(found.point)):
            found = mount
    return found


def refuse_network(folder: Path, mounts: Path = MOUNTS) -> None:
    """Raise StoreError when the folder is on a network file system, or on one shared with another kernel."""
    mount = mount_of(folder, mounts)
    if mount and mount.is_shared:
        raise StoreError(
            f"The state folder {folder} is on a network file system ({mount.kind}, mounted at {mount.point}). SQLite's "
            "locks do not hold there: tasks could be lost or run twice. Set TASKORCH_STATE_DIR to a folder on a local "
            "disk; or, if no other machine ever uses this folder, set TASKORCH_ALLOW_NETWORK_STATE=1."
        )


def own_folder(folder: Path, allow_network: bool = False) -> None:
    """Make the folder if need be, and make it this user's alone (0700). Raises StoreError."""
    if not allow_network:
        refuse_network(folder)
    with _explained(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if reason := folder_flaw(folder):
            raise StoreError(reason)
        if stat.S_IMODE(folder.stat().st_mode) != 0o700:
            folder.chmod(0o700)
    _refuse_read_only(folder)


def own_file(path: Path) -> None:
    """Make the database's empty file if need be, this user's alone (0600): `-wal` and `-shm` inherit the mode.

    Raises StoreError.
    """
    with _explained(path):
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o600))
        except FileExistsError:
            if reason := file_flaw(path):
                raise StoreError(reason) from None
            if stat.S_IMODE(path.stat().st_mode) != 0o600:
                path.chmod(0o600)
    _refuse_read_only(path)


def folder_flaw(folder: Path) -> str | None:
    """Why this cannot be a state folder. Raises OSError when it cannot be looked at."""
    found = folder.stat()
    if found.st_uid != os.geteuid():
        return f"The state folder {folder} {_belongs(found.st_uid)}"
    if found.st_mode & stat.S_ISVTX or os.path.realpath(folder) == "/":
        return (
            f"The state folder {folder} is a folder that all users share; taskorch would close it to them. Set "
            "TASKORCH_STATE_DIR to a folder of its own, such as one below it."
        )
    return None


def file_flaw(path: Path) -> str | None:
    """Why these cannot be a database's files, that which is missing aside. Raises OSError."""
    for file in files(path):
        try:
            found = file.lstat()
        except FileNotFoundError:
            continue
        if stat.S_ISLNK(found.st_mode):
            return (
                f"The database file {file} is a symbolic link, and only a plain file is allowed: its locks and its "
                "-wal would be elsewhere. Move the file here, or set TASKORCH_STATE_DIR to the folder where it is."
            )
        if not stat.S_ISREG(found.st_mode):
            return f"The database file {file} is not a plain file. Move it away, or set another TASKORCH_STATE_DIR."
        if found.st_uid != os.geteuid():
            return f"The database file {file} {_belongs(found.st_uid)}"
    return None


def files(path: Path) -> list[Path]:
    """The database's file and those that SQLite keeps beside it."""
    return [path.with_name(path.name + ending) for ending in BESIDE]


def free_bytes(folder: Path) -> int:
    """What an ordinary user may still write on the folder's disk, in bytes. Raises OSError."""
    usage = os.statvfs(folder)
    return usage.f_bavail * usage.f_frsize


@contextmanager
def held(folder: Path) -> Generator[None]:
    """Only one process at a time opens, converts or moves the database: holds a lock on the folder. Blocks.

    Raises StoreError after 30 s.
    """
    with _explained(folder):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(fd, folder)
        yield
    finally:
        os.close(fd)


def has_wal(path: Path) -> bool:
    """Whether a server that has not closed the database, or not yet, left its `-wal`."""
    with suppress(OSError):
        return path.with_name(path.name + "-wal").stat().st_size > 0
    return False


def save_orphans(path: Path) -> None:
    """Move a `-wal` aside whose database is gone: SQLite would delete it, with what was committed there last."""
    if has_wal(path) and not (path.exists() and path.stat().st_size):
        log.error("the database %s was removed; its -wal is kept as %s-wal", path, set_aside(path))


def set_aside(path: Path) -> Path:
    """Rename a database with its `-wal` and `-shm` to `<name>.corrupt-<UTC time>`; the new name. Raises StoreError."""
    moment = time.time()
    while os.path.lexists(aside := path.with_name(f"{path.name}.corrupt-{utc(moment)}")):
        moment += 1  # os.rename would replace what was moved there before
    with _explained(path):
        for old, new in zip(files(path), files(aside), strict=True):  # if this is cut short: see save_orphans
            with suppress(FileNotFoundError):
                old.rename(new)
        sync_folder(path.parent)
    return aside


def set_aside_files(folder: Path) -> list[Path]:
    """Damaged databases (or what is left of them) that were moved aside, oldest first; only the user deletes them."""
    names = {path.name for path in folder.glob("*.corrupt-*")}
    beside = {name + ending for name in names for ending in BESIDE[1:]}
    return [folder / name for name in sorted(names - beside)]


def utc(moment: float) -> str:
    """Seconds since the epoch as a file name has them: 20261124T131530Z."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(moment))


def sync_folder(folder: Path) -> None:
    """Bring new and changed names in a folder to the disk. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _lock(fd: int, folder: Path) -> None:
    deadline = time.monotonic() + OPENING_SECONDS
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StoreError(
                    f"Another taskorch has been opening {folder} for {OPENING_SECONDS:.0f} s. Nothing was changed; "
                    "`taskorch doctor` tells which servers run."
                ) from None
        except OSError:  # a file system without such locks
            return
        time.sleep(0.01)  # in a worker thread


def _mount(line: str) -> Mount | None:
    """`36 35 98:0 /root /mnt/point rw,noatime master:1 - ext3 /dev/root rw`: a varying number of words before `-`."""
    before, dash, after = line.partition(" - ")
    words = before.split(" ")
    if not dash or len(words) < 5:
        return None
    return Mount(_unescaped(words[4]), after.split(" ")[0])


def _unescaped(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def _belongs(uid: int) -> str:
    return (
        f"belongs to the user with uid {uid}, and this process runs as uid {os.geteuid()}; only one's own is used. Run "
        "taskorch as that user, give the file to yourself (chown), or set another TASKORCH_STATE_DIR."
    )


def _refuse_read_only(path: Path) -> None:
    if not os.access(path, os.W_OK):
        raise StoreError(
            f"{path} cannot be written: it, or the file system it is on, is read-only. Make it writable, or set "
            "TASKORCH_STATE_DIR to a folder that is."
        )


@contextmanager
def _explained(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        what = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        raise StoreError(
            f"The store cannot be kept in {path}: {what}. Make that a folder of yours that can be written, or set "
            "TASKORCH_STATE_DIR to another one."
        ) from error
