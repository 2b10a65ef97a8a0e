"""The servers on a file, as they note themselves in it."""

import json
import sqlite3
from collections.abc import Collection
from dataclasses import dataclass

OTHERS = """SELECT id, uuid, pid, started_at FROM servers WHERE id <> ?
  UNION SELECT owner, '', 0, 0 FROM tasks
    WHERE status = 'working' AND owner NOT IN (?, 0) AND owner NOT IN (SELECT id FROM servers)"""
NOTED = "SELECT uuid, pid, started_at, kinds FROM servers ORDER BY id"
REGISTER = "INSERT INTO servers(uuid, pid, started_at, version, kinds) VALUES (?, ?, ?, ?, ?) RETURNING id"
LEAVE = """DELETE FROM servers
  WHERE id = ? AND NOT EXISTS (SELECT 1 FROM tasks WHERE status = 'working' AND owner = servers.id)"""


@dataclass(frozen=True, slots=True)
class Peer:
    """Another server on this file: the owner number in rows, its lock's uuid ('' when unknown), its pid, since when."""

    owner: int
    uuid: str
    pid: int
    started_at: int


@dataclass(frozen=True, slots=True)
class Server:
    """A server as it has noted itself, alive or not: its lock's uuid, its pid, since when, what it can run."""

    uuid: str
    pid: int
    started_at: int
    kinds: Collection[str]


def noted(db: sqlite3.Connection) -> list[Server]:
    """Every server that has not signed off."""
    return [Server(uuid, pid, since, json.loads(kinds)) for uuid, pid, since, kinds in db.execute(NOTED)]


def others(db: sqlite3.Connection, owner: int) -> list[Peer]:
    """Every other server that is noted, or that rows still name."""
    return [Peer(*row) for row in db.execute(OTHERS, (owner, owner))]
