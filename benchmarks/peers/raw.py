"""The limit: Python's sqlite3 in one thread, taskorch's schema and its task and attempt rows, no loop, no handlers.

A create is one row a commit; the drain settles 64 tasks and claims the next 64 in one commit.
"""

from benchmarks.peers import BULK, RESULT_JSON, Threaded, rows
from benchmarks.work import STARTS

BATCH = 64


class Adapter(Threaded):
    async def open(self, fresh: bool) -> None:
        self.path = self.folder / "taskorch.db"
        if fresh:
            await rows.make(self.path)
        self.db = rows.connect(self.path)
        self.template = rows.template(self.path)

    async def close(self) -> None:
        self.db.close()

    async def create(self, tag: float = 0.0) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        self.db.execute(rows.INSERT, self.template.row())
        self.db.execute("COMMIT")
        if tag:
            STARTS.begin(tag)  # so that a pickup is the time of a commit, the least that one can take

    async def create_many(self, count: int) -> None:
        for start in range(0, count, BULK):
            some = [self.template.row() for _ in range(min(BULK, count - start))]
            self.db.execute("BEGIN IMMEDIATE")
            self.db.executemany(rows.INSERT, some)
            self.db.execute("COMMIT")

    async def fill(self, count: int, state: str = "waiting") -> None:
        self.db.close()
        await rows.fill(self.path, count, state)
        self.db = rows.connect(self.path)

    def work(self) -> None:
        db = self.db
        held: list[tuple[int, int, str]] = []
        while not self.is_stopping:
            now = rows.now_ms()
            db.execute("BEGIN IMMEDIATE")
            if held:
                db.executemany(rows.SETTLE, [(now, now, RESULT_JSON, seq, attempt) for seq, attempt, _ in held])
                db.executemany(rows.END_ATTEMPT, [(now, seq, attempt) for seq, attempt, _ in held])
            held = db.execute(rows.CLAIM, {"now": now, "limit": BATCH}).fetchall()
            db.executemany(rows.BEGIN_ATTEMPT, [(seq, attempt, now) for seq, attempt, _ in held])
            db.execute("COMMIT")
            STARTS.add(len(held))
            if not held:
                self.is_empty = True
                return
