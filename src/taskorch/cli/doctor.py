"""`taskorch doctor`: what may be wrong on this machine and how to mend it. Changes nothing, and needs no server."""

import os
import sqlite3
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from taskorch.cli import diagnosis, hosts, runnable
from taskorch.cli.check import FAIL, OK, WARN, Check, Found
from taskorch.config import (
    PREFIX,
    Settings,
    config_file,
    load_settings,
    unknown_keys,
    unknown_variables,
    where_to_mend,
)
from taskorch.domain.errors import readable
from taskorch.storage import busy, place, schema

MIB = 2**20
FEW_BYTES = 500 * MIB

OLDEST_PYTHON = (3, 11)
MENDED_SQLITE = (3, 51, 3)  # the WAL-reset bug: two connections, a write and a checkpoint at one instant
MENDED_BRANCHES = {(3, 50): 7, (3, 44): 6}


def diagnose(flags: Mapping[str, object]) -> tuple[Path, list[Check]]:
    """The state folder that is looked at, and everything that is looked into; `flags` as for `load_settings`."""
    settings, wrong = _settings(flags)
    folder = settings.state_dir
    store = diagnosis.look(folder / "taskorch.db")
    peers = diagnosis.servers(folder / "servers", store)
    looks: dict[str, Callable[[], Found]] = {
        "python": lambda: python(sys.version_info[:3]),
        "sqlite": lambda: sqlite(sqlite3.sqlite_version_info),
        "settings": lambda: wrong,
        "variables": lambda: variables(os.environ),
        "config keys": lambda: keys(unknown_keys()),
        "commands": lambda: runnable.commands(settings.allow_commands),
        "recipes": lambda: runnable.recipes(settings.recipes),
        "command dirs": lambda: runnable.command_dirs(settings.allow_dirs),
        "mcp servers": lambda: runnable.mcp_servers(settings.mcp_servers),
        "folder": lambda: rights(folder),
        "file system": lambda: file_system(folder, settings.allow_network_state),
        "disk": lambda: disk(place.free_bytes(_nearest(folder))),
        "database": lambda: database(store),
        "moved aside": lambda: moved_aside(folder),
        "servers": lambda: servers(peers),
        "supervisors": lambda: (OK, _listed(diagnosis.shims(folder / "output"), "no command runs"), ""),
        "write lock": lambda: write_lock(busy.lock_holder(folder / "taskorch.db")),
    }
    found = [host for host in hosts.hosts() if os.path.exists(host.user)]  # False where we may not look
    looks |= {host.name: partial(connection, host) for host in found} or {"hosts": no_host}
    return folder, [Check(name, *_guarded(look)) for name, look in looks.items()]


def report(folder: Path, checks: list[Check]) -> Iterator[str]:
    """The lines to print."""
    yield f"State folder: {folder}"
    for check in checks:
        yield f"{check.state:<5} {check.name:<14} {check.text}"
        if check.mend:
            yield f"{'':<20} -> {check.mend}"
    counts = {state: sum(check.state == state for check in checks) for state in (FAIL, WARN)}
    yield f"{counts[FAIL]} to mend, {counts[WARN]} to look at." if any(counts.values()) else "All is well."


def facts(folder: Path, checks: list[Check]) -> dict[str, object]:
    """The same for programs."""
    listed = [{"name": c.name, "state": c.state, "text": c.text} | ({"mend": c.mend} if c.mend else {}) for c in checks]
    return {"healthy": is_healthy(checks), "state_dir": str(folder), "checks": listed}


def is_healthy(checks: list[Check]) -> bool:
    return all(check.state != FAIL for check in checks)


def python(version: tuple[int, ...]) -> Found:
    text = ".".join(map(str, version))
    if version < OLDEST_PYTHON:
        return FAIL, f"{text} is too old", "Install taskorch with Python 3.11 or newer."
    return OK, text, ""


def sqlite(version: tuple[int, int, int]) -> Found:
    text = ".".join(map(str, version))
    if version < schema.OLDEST_SQLITE:
        return FAIL, f"{text} is too old", "Use a Python whose sqlite3 module brings SQLite 3.37 or newer."
    branch = MENDED_BRANCHES.get(version[:2])
    if version >= MENDED_SQLITE or (branch is not None and version[2] >= branch):
        return OK, text, ""
    return (
        WARN,
        f"{text} has the WAL-reset bug: very rarely a write and a checkpoint at one instant damage the file",
        "Use a Python whose sqlite3 module brings SQLite 3.51.3, 3.50.7 or 3.44.6 or newer; keep backups.",
    )


def variables(environment: Mapping[str, str]) -> Found:
    if unknown := unknown_variables(environment):
        mend = "Correct the name or unset it; `taskorch config show` lists all."
        return WARN, f"{', '.join(unknown)}: no such setting", mend
    return OK, f"{sum(name.startswith(PREFIX) for name in environment)} set, all known", ""


def keys(unknown: list[str]) -> Found:
    if unknown:
        return WARN, f"{', '.join(unknown)}: no such setting", f"Correct or remove it in {config_file()}."
    return OK, f"{config_file()} " + ("holds known keys only" if config_file().exists() else "is not there"), ""


def rights(folder: Path) -> Found:
    if not folder.exists():
        above = _nearest(folder)
        if not (above.is_dir() and os.access(above, os.W_OK)):
            return FAIL, f"{folder} cannot be made in {above}", f"Make {above} writable, or set {PREFIX}STATE_DIR."
        return OK, "not there yet; the first start makes it", ""
    if flaw := place.folder_flaw(folder) or place.file_flaw(folder / "taskorch.db"):
        what, _, mend = flaw.partition(". ") if ". " in flaw else flaw.partition("; ")
        return FAIL, what, mend
    there = [folder, *filter(Path.exists, place.files(folder / "taskorch.db"))]
    if locked := [path for path in there if not os.access(path, os.W_OK)]:
        return FAIL, f"{locked[0]} cannot be written", f"chmod u+w it, or set {PREFIX}STATE_DIR to another folder."
    if wide := [path for path in there if path.stat().st_mode & 0o077]:
        return WARN, f"{wide[0]} is open to others", f"chmod go= {wide[0]} (the next start does it)."
    return OK, "for you alone", ""


def file_system(folder: Path, allowed: bool) -> Found:
    mount = place.mount_of(folder)
    if mount is None:
        return OK, "its kind is not known here", ""
    text = f"{mount.kind}, mounted at {mount.point}"
    if not mount.is_shared:
        return OK, text, ""
    if allowed:
        return WARN, f"{text}: a network file system", "See to it that no other machine uses this folder."
    mend = f"Set {PREFIX}STATE_DIR to a local disk; or {PREFIX}ALLOW_NETWORK_STATE=1 if no other machine uses it."
    return FAIL, f"{text}: SQLite's locks do not hold on a network file system", mend


def disk(free: int) -> Found:
    text = f"{free // MIB} MiB free"
    if free < place.LEAST_FREE_BYTES:
        return FAIL, text, f"Free some space: below {place.LEAST_FREE_BYTES // MIB} MiB no task is started."
    if free < FEW_BYTES:
        return WARN, text, f"Free some space: below {place.LEAST_FREE_BYTES // MIB} MiB no task would be started."
    return OK, text, ""


def database(store: diagnosis.Store) -> Found:
    if store.problem:
        return FAIL, store.problem, store.mend
    if not store.exists:
        return OK, "not there yet; the first start makes it", ""
    text = f"schema {store.version}, {store.bytes // 1024} KiB, sound"
    if store.journal_mode != "wal":
        return WARN, f"{text}, journal mode {store.journal_mode}", "Start taskorch once: it sets the mode to WAL."
    if store.left_wal and not store.in_use:
        return OK, f"{text}; a server ended without closing it, and the next start makes up for that", ""
    return OK, text, ""


def moved_aside(folder: Path) -> Found:
    if names := [path.name for path in place.set_aside_files(folder)]:
        mend = "Save what you need from it (sqlite3 FILE .recover), or put a file of backups/ in its place; delete it."
        return WARN, f"damaged databases are kept: {', '.join(names)}", mend
    return OK, "no damaged database", ""


def servers(peers: list[diagnosis.Server]) -> Found:
    alive, dead = [peer for peer in peers if peer.alive], [peer for peer in peers if not peer.alive]
    text = _listed([str(peer) for peer in alive], "none runs")
    if dead:
        left = f"; gone without signing off: {', '.join(str(peer) for peer in dead)}"
        mend = (
            "Start taskorch: it takes over what they worked on." if not alive else "The others take over; look again."
        )
        return WARN, text + left, mend
    if any(peer.elsewhere for peer in alive):
        mend = (
            f"Only one machine may use this folder. Stop that server, or remove its file in {PREFIX}STATE_DIR/servers."
        )
        return WARN, text, mend
    return OK, text, ""


def write_lock(holder: int | None) -> Found:
    if holder is None:
        return OK, "free", ""
    who = f"pid {holder}" if holder > 0 else "a process of another container"
    if holder > 0 and busy.is_stopped(holder):
        mend = f"Resume it (kill -CONT {holder}) or end it (kill -KILL {holder}): nobody can write meanwhile."
        return FAIL, f"held by {who}, which is stopped", mend
    return WARN, f"held by {who}", "A moment is normal. If it stays so, end that process: nobody can write meanwhile."


def connection(host: hosts.Host) -> Found:
    """Whether a host's file names a taskorch that it can start, and whether that is this one."""
    mend = f"taskorch install {host.name}"
    try:
        entry = hosts.entry_of(hosts.read(host.user), host.section)
    except ValueError as error:
        return WARN, f"{host.user} is no JSON: {error}", f"Correct the file; then: {mend}"
    if entry is None:
        return OK, f"{host.user} names no taskorch; to connect it: {mend}", ""
    started = hosts.words(entry)
    if not isinstance(entry.get("command"), str) or not started:
        return FAIL, f"{host.user} names no command to start taskorch", mend
    if "${" in started[0]:
        return OK, f"starts {started[0]}, which only {host.title} can look up", ""
    if problem := hosts.flaw(started):
        return FAIL, f"{problem}, says {host.user}", mend
    return _named(host, started, mend)


def _named(host: hosts.Host, started: list[str], mend: str) -> Found:
    said = " ".join(started)
    if not os.path.isabs(started[0]):
        return WARN, f"{host.user} says {said}; hosts have another PATH than a shell", mend
    if hosts.is_this_one(started):
        return OK, f"starts this taskorch: {said}", ""
    if os.path.basename(started[0]) in hosts.LAUNCHERS:
        return OK, f"starts {said}", ""
    return WARN, f"starts another taskorch than this one: {said}", f"If this one is meant: {mend}"


def no_host() -> Found:
    return OK, f"none has a file here; to connect one: taskorch install {'|'.join(hosts.HostName)}", ""


def _settings(flags: Mapping[str, object]) -> tuple[Settings, Found]:
    """The settings; those that cannot be had by their defaults, so that the rest can be looked at."""
    try:
        return load_settings(**flags), (OK, "sound", "")
    except ValidationError as error:
        wrong = (FAIL, readable(error), f"Correct it {where_to_mend(error)}.")
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        wrong = (FAIL, f"{config_file()} cannot be read: {error}", "Correct the file.")
    named = flags.get("state_dir") or os.environ.get(f"{PREFIX}STATE_DIR")
    folder = {"state_dir": Path(os.path.abspath(os.path.expanduser(str(named))))} if named else {}
    return Settings.model_construct(**folder), wrong  # pyright: ignore[reportArgumentType]


def _guarded(look: Callable[[], Found]) -> Found:
    try:
        return look()
    except (OSError, ValueError) as error:
        return FAIL, f"cannot be looked at: {error}", "See to what it names."


def _nearest(folder: Path) -> Path:
    return next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))


def _listed(items: list[str], none: str) -> str:
    return "; ".join(items) or none
