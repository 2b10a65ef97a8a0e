"""What the figures were measured on."""

import os
import platform
import sqlite3
import time
from pathlib import Path
from tempfile import TemporaryFile

SYNCS = 300


def describe(folder: Path) -> dict[str, str]:
    """The machine in words; `folder` is on the disk that is measured."""
    return {
        "processor": f"{os.cpu_count()} x {_processor()}",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        "disk": f"{file_system(folder) or 'unknown'}, {fdatasyncs(folder):,.0f} fdatasync of 4 KiB a second",
        "load before": f"{os.getloadavg()[0]:.1f}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def fdatasyncs(folder: Path) -> float:
    """Overwrites of 4 KiB a second, each on disk before the next."""
    sync = getattr(os, "fdatasync", os.fsync)
    with TemporaryFile(dir=folder, buffering=0) as file:
        file.write(bytes(4096))
        sync(file.fileno())
        began = time.perf_counter()
        for _ in range(SYNCS):
            os.pwrite(file.fileno(), os.urandom(4096), 0)
            sync(file.fileno())
        return SYNCS / (time.perf_counter() - began)


def file_system(folder: Path) -> str:
    """The type of the file system that holds the folder; empty where /proc does not say."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    fits = [(len(where), kind) for where, kind in mounts if folder.resolve().is_relative_to(where)]
    return max(fits)[1] if fits else ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
