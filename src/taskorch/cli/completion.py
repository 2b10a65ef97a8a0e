"""What a shell completes: tasks, as the store knows them now. It says nothing when it cannot."""

import re
from collections.abc import Awaitable, Callable

import typer

MOST = 50
PLAIN = re.compile(r"[\w.:@%+,/-]+")  # what a shell takes as one word


def complete_task(context: typer.Context, incomplete: str) -> list[str]:
    """Ids and names that begin so."""
    import anyio

    from taskorch.config import load_settings
    from taskorch.storage.queries import Queries
    from taskorch.storage.reading import open_reader

    above = (context.find_root().params or {}) | context.params
    try:
        settings = load_settings(state_dir=above.get("state_dir"))
        with open_reader(settings.state_dir / "taskorch.db", settings.allow_network_state) as reader:
            suggest: Callable[[str, int], Awaitable[list[str]]] = Queries(reader).suggest
            return [word for word in anyio.run(suggest, incomplete, MOST) if PLAIN.fullmatch(word)]
    except Exception:  # a traceback has no place in what somebody types
        return []
