"""Which machine, which boot, which process: what tells a living server from a dead one."""

import os
import subprocess
import sys
import uuid
from functools import cache
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MACHINE_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
NOTED_WITHIN_MS = 60_000  # a server notes itself in the store within this time of its start


@cache
def boot_id() -> str:
    """The same for all processes until the kernel starts anew, in every container; '' where nothing tells."""
    if BOOT_ID.exists():
        return BOOT_ID.read_text().strip()
    if sys.platform == "darwin":
        told = subprocess.run(["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=False)
        return told.stdout.strip()
    return ""


@cache
def machine_id() -> str:
    """The same at every start of this machine and on no other."""
    for path in MACHINE_IDS:
        try:
            if found := path.read_text().strip():
                return found
        except OSError:
            continue
    return f"{uuid.getnode():012x}"


def runs(pid: int, noted_at: int) -> bool:
    """Whether the process that noted itself then (ms since the epoch) still runs, not another one of its number."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's, and alive
    started = _started_at(pid)
    return started is None or -1_000 <= noted_at - started <= NOTED_WITHIN_MS


def _started_at(pid: int) -> int | None:
    """When a process began, in ms since the epoch by today's clock; None where the system does not tell."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    except (OSError, StopIteration, ValueError, IndexError):
        return None
    return int(booted.split()[1]) * 1000 + ticks * 1000 // os.sysconf("SC_CLK_TCK")
