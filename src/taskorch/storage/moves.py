"""What each commit of this process has changed, for those who count it: exact, whoever asked for the change."""

from collections.abc import Callable, Sequence
from functools import partial

from taskorch.domain.task import Task
from taskorch.storage.database import Database, Transaction

Move = tuple[Task | None, Task | None]  # a task before and after; None: it was created or deleted


def tell(database: Database, told: Callable[[Sequence[Move]], None]) -> None:
    """Call `told` in the event loop after each commit, with its moves in their order. A store must be made before."""
    prepare = database.before_commit

    def before_commit(tx: Transaction) -> None:
        prepare(tx)
        tx.afterwards.append(partial(told, tx.moved))

    database.before_commit = before_commit
