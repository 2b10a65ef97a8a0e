"""The server under test: the real one, which keeps a journal, works for itself, and dies or stops at named points."""

import ctypes
import os
import random
import signal
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio

from reliability import mutants
from reliability.points import Part, Victim, watch
from taskorch.app import App, running
from taskorch.config import Settings
from taskorch.domain.errors import TaskError
from taskorch.domain.task import NewTask, OnDependencyFailure, Priority, Schedule, Task
from taskorch.storage.additions import Wish
from taskorch.work import supervised
from taskorch.work.handlers import Context, handler

BEAT_SECONDS = 0.04
PAUSE_SECONDS = (0.05, 0.25)  # between two calls of the client in each server
SCHEDULES_MOST = 2  # at once
OPEN_MOST = 60  # unfinished tasks beyond which no more are created
KEYED_MOST = 20  # the same with a concurrency_key: they are slow, one after the other
LIMITS = {"pair-2": 2}  # each key ends with its limit
KEYS = ("alone-1", "single-1", "pair-2", None)
PR_SET_PDEATHSIG = 1

SCRIPT = """line() {
  read -r up _ < /proc/uptime
  printf '%s %s %s %s %s -\\n' "$up" $$ "$1" "$TASKORCH_TASK_ID" "$TASKORCH_ATTEMPT" >> "$journal"
}
journal=$1
line begin
i=0
while [ "$i" -lt "$2" ]; do sleep 0.05; line beat; i=$((i+1)); done
line end
exit "$3"
"""

# The shim under test: the real byte code, with os.fork (of its spawner), os.write and os.rename watched.
SHIM = """import marshal, os, sys, time
JOURNAL, CALM, RATE, MUTANT, CODE = %r
names = {"__name__": "shim"}
exec(marshal.loads(open(CODE, "rb").read()[16:]), names)
fork, write, rename, supervise = os.fork, os.write, os.rename, names["supervise"]
word, task, attempt, held = "spawnerkill", "-", "0", []

def point(name):
    if os.urandom(1)[0] < RATE and not os.path.exists(CALM):
        fd = os.open(JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        write(fd, b"%%f %%d %%s %%s %%s %%s\\n" %% (
            time.monotonic(), os.getpid(), word.encode(), task.encode(), attempt.encode(), name.encode()))
        os.kill(os.getpid(), 9)

def watched_fork():
    point("before-fork")
    pid = fork()
    if pid:
        point("forked")
    return pid

def watched_supervise(path, greet):
    global word, task, attempt
    word, (_, task, attempt) = "shimkill", path.decode().rsplit("/", 2)
    supervise(path, greet)

def watched_write(fd, data):
    begins, note = data == b"begins\\n", type(data) is bytes and data.endswith(b"\\n") and len(data.split()) == 2
    if begins:
        point("before-start")
        if MUTANT == "early-start":
            held[:] = [fd, data]
            return len(data)
    if note:
        if MUTANT == "early-start":
            time.sleep(0.25)
        point("started")
        if MUTANT == "early-start":
            write(*held)
        held[:] = [fd, data]
    done = write(fd, data)
    if begins or note:
        point("begins" if begins else "noted")
    return done

def watched_rename(*args, **kwargs):
    if MUTANT == "late-record" and held:
        names["fcntl"].lockf(held[0], names["fcntl"].LOCK_UN)
        time.sleep(0.6)
    point("before-record")
    rename(*args, **kwargs)
    point("after-record")

os.fork, os.write, os.rename, names["supervise"] = watched_fork, watched_write, watched_rename, watched_supervise
names["main"]()
os._exit(0)
"""


_victim: Victim | None = None  # of this process


def run(part: Part) -> int:
    """Be that server until SIGTERM or the fate; the exit code."""
    global _victim
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    errors = os.open(part.folder / "stderr", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(errors, 2)
    _victim = Victim(part)
    mutants.apply(part.mutant)
    watch(_victim)
    try:
        anyio.run(_serve, part, _victim)
    except BaseException:
        os.write(2, f"pid {os.getpid()}\n{traceback.format_exc()}".encode())
        return 1
    return 0


def prepare(folder: Path, shim_rate: int, mutant: str) -> None:
    """Write the programs that a run needs. `shim_rate`: of 256 times that a shim passes a point, it dies."""
    (folder / "work.sh").write_text(SCRIPT)
    code = supervised.compiled_shim(folder / "state" / "cache")
    names = (str(folder / "journal"), str(folder / "calm"), shim_rate, mutant, str(code))
    (folder / "shim.py").write_text(SHIM % (names,))


async def _serve(part: Part, victim: Victim) -> None:
    settings = Settings(
        state_dir=part.folder / "state",
        allow_commands="*",
        handlers="reliability.victim",
        concurrency=part.slots,
        grace_seconds=0.3,
        limits=LIMITS,
    )
    async with running(settings, part.folder) as app, anyio.create_task_group() as group:
        group.start_soon(_client, app, victim)
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                break
        group.cancel_scope.cancel()


# What the server's own client does.


async def _client(app: App, victim: Victim) -> None:
    """Create, cancel, retry and edit tasks by chance, and note what was acknowledged."""
    chance = random.Random(victim.part.seed)
    known: list[str] = []
    while True:
        await anyio.sleep(chance.uniform(*PAUSE_SECONDS))
        if victim.calm.exists():
            for schedule in await app.service.store._database.read(_schedules):
                await app.service.store.cancel(schedule, "", "client")  # else there is no end
            continue
        with suppress(TaskError):
            if len(await app.service.store._database.read(_schedules)) < SCHEDULES_MOST and chance.random() < 0.1:
                await _create_schedule(app, victim)
            known = known[-20:] or await app.service.store._database.read(_recent)
            what = chance.random()
            if what < 0.7 or not known:
                if (unfinished := await app.service.store._database.read(_unfinished)) < OPEN_MOST:
                    key = chance.choice(KEYS) if unfinished < KEYED_MOST else None
                    known.append(await _create(app, victim, known, chance, key))
            elif what < 0.85:
                await _cancel(app, victim, chance.choice(known))
            elif what < 0.95:
                broken = await app.service.store._database.read(_broken)
                await app.service.store.retry(chance.choice(broken or known), None, "client")
            else:
                await app.service.store.edit(chance.choice(known), {"priority": Priority.HIGH}, None, "client")


async def _create(app: App, victim: Victim, known: list[str], chance: random.Random, key: str | None) -> str:
    kind = chance.choices(("command", "work", "block"), (45, 45, 10))[0]
    most = app.service.kinds[kind].max_attempts
    new = NewTask(
        kind,
        _payload(victim.part.folder, kind, chance),
        max_attempts=most + (kind == "command" and chance.random() < 0.25),
        timeout_seconds=20,
        on_server_exit="stop" if chance.random() < 0.3 else "survive",
        concurrency_key=key,
    )
    if known and chance.random() < 0.4:
        return await _create_after(app, victim, new, chance.sample(known, min(len(known), 2)), chance)
    task = await app.service.store.add(new)
    victim.journal.write("ack", task.id, 0, f"{kind} {task.max_attempts} {task.on_server_exit}")
    return task.id


async def _create_after(app: App, victim: Victim, new: NewTask, parents: list[str], chance: random.Random) -> str:
    """A task that depends on others; refused where one of them has failed already."""
    policy: OnDependencyFailure = chance.choice(("cancel", "fail", "run"))
    wish = Wish(new, None, tuple(parents), policy)
    victim.journal.write("after", wish.task_id, 0, f"{policy} {' '.join(parents)}")  # before: it may start at once
    await app.service.store.add_all([wish])
    victim.journal.write("ack", wish.task_id, 0, f"{new.kind} {new.max_attempts} {new.on_server_exit}")
    return wish.task_id


async def _create_schedule(app: App, victim: Victim) -> None:
    """One that makes up for every time that it missed, whatever else it has under way."""
    schedule = Schedule(None, 1.0, "UTC", "all", "queue")
    payload = {"steps": 1, "fails": 0, "stubborn": False}
    new = NewTask("work", payload, 3, 20, name=f"schedule {os.getpid()}-{time.monotonic_ns()}", schedule=schedule)
    await app.service.store.add(new)


def _payload(folder: Path, kind: str, chance: random.Random) -> dict[str, Any]:
    steps = chance.choice((1, 1, 2, 3, 4, 6))
    if kind == "command":
        program = [str(folder / "work.sh"), str(folder / "journal"), str(steps), str(chance.choice((0, 0, 0, 3)))]
        return {"argv": ["/bin/sh", *program]}
    return {"steps": chance.choice((steps, 20)), "fails": chance.choice((0, 0, 0, 1, 9)), "stubborn": steps == 3}


async def _cancel(app: App, victim: Victim, task_id: str) -> None:
    task = await app.service.store.cancel(task_id, "", "client")
    if task.cancel_requested_at is not None and not task.ended:
        victim.journal.write("asked", task.id, task.attempt)


def _recent(db: Any) -> list[str]:
    return [row[0] for row in db.execute("SELECT id FROM tasks ORDER BY seq DESC LIMIT 20")]


def _unfinished(db: Any) -> int:
    return db.execute("SELECT count(*) FROM tasks WHERE status IN ('waiting', 'working')").fetchone()[0]


def _broken(db: Any) -> list[str]:
    """Failed tasks that others depend on: a retry of those means most."""
    failed = "SELECT seq, id FROM tasks WHERE status = 'failed' AND seq IN (SELECT parent FROM dependencies)"
    return [row[1] for row in db.execute(f"{failed} ORDER BY seq DESC LIMIT 10")]


def _schedules(db: Any) -> list[str]:
    return [row[0] for row in db.execute("SELECT id FROM tasks WHERE schedule IS NOT NULL AND status = 'waiting'")]


# The handlers.


@handler("work")
async def work(payload: dict[str, Any], context: Context) -> Any:
    """Beat `steps` times; fail in the first `fails` attempts; if `stubborn`, make an error of being cancelled."""
    assert _victim
    journal, task = _victim.journal, context.task
    journal.write("begin", task.id, task.attempt)
    try:
        for _ in range(payload["steps"]):
            await anyio.sleep(BEAT_SECONDS)
            journal.write("beat", task.id, task.attempt)
    except anyio.get_cancelled_exc_class():
        if payload["stubborn"]:
            raise RuntimeError("it does not like to be cancelled") from None
        raise
    finally:
        journal.write("end", task.id, task.attempt)
    return _end(payload, task)


@handler("block")
def block(payload: dict[str, Any], context: Context) -> Any:
    """The same in a thread."""
    assert _victim
    journal, task = _victim.journal, context.task
    journal.write("begin", task.id, task.attempt)
    for _ in range(payload["steps"]):
        time.sleep(BEAT_SECONDS)
        if context.cancelled:
            break
        journal.write("beat", task.id, task.attempt)
    journal.write("end", task.id, task.attempt)
    return _end(payload, task)


def _end(payload: dict[str, Any], task: Task) -> dict[str, str]:
    if task.attempt <= payload["fails"]:
        raise RuntimeError("it fails")
    return {"by": f"{task.id}/{task.attempt}"}
