"""What the store must hold, in plain dicts: the model that it is compared with. It imports none of the rules."""

from collections.abc import Mapping
from typing import Any

from fakes import Clock

from taskorch.domain.task import Cancelled, Completed, Failed, Outcome, Task

SERVERS = 2
LIMITS = {"b": 2}  # of "a", which is not named: 1
LEVEL_MS = 600_000

Row = dict[str, Any]


class Twin:
    """What the store must hold, and what each of its methods must do: rows by id, with `starts` and `events`."""

    def __init__(self, clock: Clock) -> None:
        self.rows: dict[str, Row] = {}
        self.completed: dict[str, Row] = {}  # as they were when they were completed
        self.keys: dict[str, str] = {}  # the task that was created with a key
        self.gone: dict[str, int] = {}  # when tasks were removed
        self._clock = clock
        self._touched: set[str | None] = set()  # concurrency_keys, since the last commit
        self._looked = [1 << 62] * SERVERS  # when each server last looked for due tasks; at first it cannot know

    @property
    def now(self) -> int:
        return self._clock.now

    def may_run(self, row: Row) -> bool:
        due = row["run_at"] is None or row["run_at"] <= self.now
        return row["status"] == "waiting" and due and not row["paused"] and not row["blocked"] and not self.expired(row)

    def expired(self, row: Row) -> bool:
        return row["status"] == "waiting" and row["expires_at"] is not None and row["expires_at"] <= self.now

    def holder(self, key: str) -> Row | None:
        """The task that a repeated call with that key must find: until an hour after its end."""
        row = self.rows.get(self.keys.get(key, ""))
        has_ended = row is not None and row["finished_at"] is not None and self.now - row["finished_at"] >= 3_600_000
        return None if has_ended else row

    def held(self, task: Task) -> Row | None:
        row = self.rows.get(task.id, {"status": "deleted"})
        held = (row["status"], row.get("attempt"), row.get("owner"))
        return row if held == ("working", task.attempt, task.owner) else None

    def ready(self, kind: str) -> list[Row]:
        """The ready index of a kind, as a claim walks it."""
        return sorted((row for row in self.rows.values() if row["ready"] and row["kind"] == kind), key=_best)

    # Moves. Each is only called where it is allowed.

    def move(self, row: Row, status: str, **fields: Any) -> None:
        had_ended = row.get("finished_at") is not None
        is_back = (row.get("status"), status) == ("working", "waiting")
        row |= {"status": status, "version": row["version"] + 1, "updated_at": self.now} | fields
        if is_back or status != "waiting":
            row["blocked"] = is_back and self.unfinished(row)
        self.file(row)
        if status == "completed":
            self.completed[row["id"]] = dict(row)
        has_ended = row["finished_at"] is not None
        for child in self.children(row) if has_ended is not had_ended else []:
            self.follow(child, returned=had_ended)

    def parents(self, row: Row) -> list[Row]:
        return [self.rows[task_id] for task_id in row["parents"] if task_id in self.rows]

    def children(self, row: Row) -> list[Row]:
        return [child for child in self.rows.values() if row["id"] in child["parents"]]

    def is_needed(self, row: Row) -> bool:
        """Whether what has not ended depends on it."""
        return any(child["finished_at"] is None for child in self.children(row))

    def stopped(self, row: Row) -> bool:
        """Whether something that it depends on has ended otherwise than well, and it minds."""
        bad = [parent for parent in self.parents(row) if parent["status"] in ("failed", "cancelled")]
        return bool(bad) and row["policy"] != "run"

    def unfinished(self, row: Row) -> bool:
        return any(parent["finished_at"] is None for parent in self.parents(row))

    def waits_for_others(self, row: Row) -> bool:
        """Whether it ended because of others and would run if they had not."""
        by_others = row["error"] in ("dependency", "dependency_failed")
        return by_others and row["attempt"] == 0 and not row["delete_requested"]

    def follow(self, row: Row, returned: bool) -> None:
        """Something that it depends on has ended, or has `returned` from its end."""
        if row["status"] == "waiting" and self.stopped(row):
            end = {"finished_at": self.now, "paused": False}
            if row["policy"] == "fail":
                row["events"].append("dependency_failed")
                self.move(row, "failed", **end, error="dependency_failed")
            else:
                row["events"].append("cancelled")
                self.move(row, "cancelled", **end, error="dependency")
        elif row["status"] == "waiting":
            row["blocked"] = self.unfinished(row)
            self.file(row)
        elif returned and self.waits_for_others(row) and not self.stopped(row):
            self.retry(row, row["run_at"])

    def file(self, row: Row) -> None:
        """Into the ready index or out of it; with a concurrency_key the commit decides."""
        may = self.may_run(row)
        row["ready"] = may and bool(row["ready"] or row["concurrency_key"] is None)
        row["held"] = may and not row["ready"]
        self.touch(row)

    def touch(self, row: Row) -> None:
        self._touched.add(row["concurrency_key"])

    def room(self, key: str) -> int:
        working = [row for row in self.rows.values() if row["concurrency_key"] == key and row["status"] == "working"]
        return LIMITS.get(key, 1) - len(working)

    def commit(self) -> None:
        """Of each touched key, and each kind, the best are ready that there is room for, and the others held."""
        touched, self._touched = self._touched, set()
        for key in touched - {None}:
            assert key and self.room(key) >= 0, f"more than {LIMITS.get(key, 1)} of {key} work"
            for kind in {row["kind"] for row in self.rows.values()}:
                self._fill(key, kind)

    def _fill(self, key: str, kind: str) -> None:
        def waiting() -> list[Row]:
            of_key = (row for row in self.rows.values() if row["concurrency_key"] == key and row["kind"] == kind)
            return sorted((row for row in of_key if row["ready"] or row["held"]), key=_best)

        while stale := [row for row in waiting()[: self.room(key)] if row["held"] and not self.may_run(row)]:
            for row in stale:
                row["held"] = False
        for place, row in enumerate(waiting()):
            row["ready"], row["held"] = place < self.room(key), place >= self.room(key)

    def age(self) -> None:
        """What could have run for ten minutes is a level better, for twenty two."""
        for row in self.rows.values():
            since = max(row["updated_at"], row["run_at"] or 0)
            level = min(2, row["priority"] + (self.now - since) // LEVEL_MS)
            if (row["ready"] or row["held"]) and level > row["rank"]:
                row["rank"] = level
                self.touch(row)

    def claim(self, owner: int, kinds: Mapping[str, int], free: int) -> list[str]:
        claimed = self._choose(kinds, free)
        while over := [row for row in claimed if self._is_over(row, claimed)]:
            for row in over:
                row["ready"], row["held"] = False, True
                self.touch(row)
            claimed = self._choose(kinds, free)
        for row in claimed:
            begun = {"attempt": row["attempt"] + 1, "owner": owner, "started_at": self.now}
            self.move(row, "working", **begun, error=None, progress=None)
            row["starts"].append([row["attempt"], owner, None, None])
        return [row["id"] for row in claimed]

    def _is_over(self, row: Row, claimed: list[Row]) -> bool:
        key = row["concurrency_key"]
        return key is not None and [r for r in claimed if r["concurrency_key"] == key].index(row) >= self.room(key)

    def _choose(self, kinds: Mapping[str, int], free: int) -> list[Row]:
        found: list[Row] = []
        next_one = any(kinds.values())
        for kind, more in kinds.items():
            while stale := [row for row in self.ready(kind)[: free + more + next_one] if not self.may_run(row)]:
                for row in stale:
                    self.refile(row)
            found += self.ready(kind)[: free + more + next_one]
        claimed: list[Row] = []
        for row in sorted(found, key=_best):
            may_wait = _starts_left(row) > 1 and row["concurrency_key"] is None
            ahead = len(claimed) < free + kinds[row["kind"]] and may_wait
            if not (len(claimed) < free or ahead):
                return claimed
            claimed.append(row)
        return claimed

    def settle(self, task: Task, outcome: Outcome, started_at: int | None, backoff: int | None) -> bool:
        """False: refused. `backoff`: when the store says that it runs again, checked here."""
        row = self.held(task)
        if row is None:
            return False
        began = {"owner": None, "started_at": row["started_at"] if started_at is None else started_at}
        end = began | {"finished_at": self.now}
        cancelled = isinstance(outcome, Cancelled) or row["cancel_requested_at"] is not None
        wait = began | {"progress": None, "rank": int(row["priority"])}
        row["starts"][-1][2:] = [_name(outcome), _reason(outcome)]
        match outcome:
            case Completed(result):
                self.move(row, "completed", **end, result=result, progress=None, error=None)
            case _ if cancelled:
                row["starts"][-1][2:] = ["cancelled", "user"]
                self.move(row, "cancelled", **end, error="user")
            case Failed(reason, retryable=True, retry_after_ms=int(wish)) if _starts_left(row) > 0:
                assert backoff == self.now + wish
                self.move(row, "waiting", **wait, run_at=backoff, error=str(reason))
            case Failed(reason, retryable=True) if _starts_left(row) > 0:
                longest = min(300_000, 2_000 * 2 ** (row["attempt"] - 1))
                assert backoff is not None and longest / 2 - 1 <= backoff - self.now <= longest
                self.move(row, "waiting", **wait, run_at=backoff, error=str(reason))
            case Failed(reason):
                self.move(row, "failed", **end, error=str(reason))
            case _ if row["interruptions"] == 5:
                self.move(row, "failed", **end, error="poison")
            case _:
                given_back = {"interruptions": row["interruptions"] + 1, "run_at": None}
                self.move(row, "waiting", **wait, **given_back, error="interrupted")
        if row["delete_requested"]:
            self.forget(row)
        return True

    def cancel(self, row: Row, reason: str) -> None:
        if row["status"] == "waiting":
            self.move(row, "cancelled", finished_at=self.now, paused=False, error="user")
            row["events"].append("cancelled")
        elif row["status"] == "working" and row["cancel_requested_at"] is None:
            self.move(row, "working", cancel_requested_at=self.now, cancel_reason=reason)
            row["events"].append("cancel_requested")

    def retry(self, row: Row, run_at: int | None) -> None:
        expires_at = row["expires_at"]
        if expires_at is not None and expires_at <= max(self.now, run_at or 0):
            expires_at = None
        most = max(row["max_attempts"], row["attempt"] - row["interruptions"] + 1)
        anew = dict.fromkeys(("finished_at", "progress", "error", "cancel_requested_at", "cancel_reason"))
        anew["rank"] = int(row["priority"])
        row["events"].append("retried")
        anew |= {"run_at": run_at, "expires_at": expires_at, "max_attempts": most, "paused": False}
        self.move(row, "waiting", **anew, blocked=self.unfinished(row))

    def refile(self, row: Row) -> None:
        """It leaves or enters the ready index, or fails as it has expired."""
        if self.expired(row):
            self.move(row, "failed", finished_at=self.now, paused=False, error="expired")
            row["events"].append("expired")
        self.file(row)

    def promote(self, by: int) -> int | None:
        """When it is to be called next. A retry whose backoff an advanced clock has reckoned waits as long from now."""
        set_back, self._looked[by] = self.now < self._looked[by], self.now
        for row in self.rows.values() if set_back else ():
            backs_off = self.in_time(row) and row["error"]
            if backs_off and row["run_at"] and row["updated_at"] > self.now < row["run_at"]:
                wait = row["run_at"] - row["updated_at"]
                if wait <= 300_000:
                    row |= {"run_at": min(row["run_at"], self.now + max(0, wait)), "updated_at": self.now}
                    self.touch(row)
        self.commit()
        for row in self.rows.values():
            if self.expired(row) or (self.in_time(row) and self.may_run(row)):
                self.refile(row)
        self.commit()
        waiting = [row for row in self.rows.values() if row["status"] == "waiting"]
        due = [row["run_at"] for row in waiting if self.in_time(row)]
        return min((at for at in [*due, *(row["expires_at"] for row in waiting)] if at is not None), default=None)

    def in_time(self, row: Row) -> bool:
        """Whether it waits for its time."""
        stopped = row["ready"] or row["held"] or not _is_timed(row)
        return row["status"] == "waiting" and not stopped and row["run_at"] is not None

    def forget(self, row: Row) -> None:
        self.touch(row)
        del self.rows[row["id"]]
        for other in self.rows.values():
            other["parents"][:] = [task_id for task_id in other["parents"] if task_id != row["id"]]
        self.gone[row["id"]] = self.now
        self.completed.pop(row["id"], None)

    def purge(self, keep: int, keep_failed: int) -> int:
        """How many were too old. What was retried may have failed in a life before, and is kept as such."""
        old: list[Row] = []
        for row in self.rows.values():
            kept = max(keep, keep_failed) if "retried" in row["events"] else keep
            kept = keep_failed if row["status"] == "failed" else kept
            is_old = row["finished_at"] is not None and row["finished_at"] < self.now - kept
            old += [row] if is_old and not self.is_needed(row) else []
        for row in old:
            self.forget(row)
        self.gone = {task_id: at for task_id, at in self.gone.items() if at >= self.now - 30 * 86_400_000}
        return len(old)

    def edit_is_refused(self, row: Row, changes: Row, version: int | None) -> bool:
        """Whether its status, its version, or what it has come to forbids it."""
        fixed = set(changes) - {"priority", "labels"}
        new = row | changes
        never = {"run_at", "expires_at"} & set(changes) and new["run_at"] and new["expires_at"]
        return bool(
            row["finished_at"] is not None
            or (version is not None and version != row["version"])
            or (row["status"] == "working" and fixed)
            or ("payload" in changes and row["attempt"] > 0)
            or ("max_attempts" in changes and _starts_left(new) <= 0)
            or (never and new["expires_at"] <= new["run_at"])
        )


def _is_timed(row: Row) -> bool:
    """Whether a time is all that it may wait for."""
    return not row["paused"] and not row["blocked"]


def _best(row: Row) -> tuple[int, int]:
    return -row["rank"], row["seq"]


def _starts_left(row: Row) -> int:
    return row["max_attempts"] + row["interruptions"] - row["attempt"]


def _name(outcome: Outcome) -> str:
    return type(outcome).__name__.lower()


def _reason(outcome: Outcome) -> str | None:
    return (
        str(outcome.reason)
        if isinstance(outcome, Failed)
        else None
        if isinstance(outcome, Completed)
        else "interrupted"
    )
