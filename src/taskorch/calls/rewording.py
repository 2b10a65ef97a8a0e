"""Texts that were written for those who call tools, in the words of those who ask otherwise."""

import re
from collections.abc import Callable, Collection
from functools import cache

TASK = re.compile(r"task_ids?=\[?(['\"])(.+?)\1")


def reworded(
    text: str,
    tools: Collection[str],
    verb: str,
    said: Callable[[str], str],
    said_call: Callable[[str, str | None, str], str],
) -> str:
    """The same with other words in the place of the tools; `verb` stands for "call" before them.

    `said`: for the name of a tool. `said_call`: for a call, by its tool, the task that it names and all its arguments.
    """

    def other(found: re.Match[str]) -> str:
        call, tool, arguments = found.groups()
        before = {None: "", "Call ": f"{verb.capitalize()} ", "call ": f"{verb} "}[call]
        if arguments is None:
            return before + said(tool)
        task = TASK.search(arguments)
        return before + said_call(tool, task and task[2], arguments)

    return _named(tuple(tools)).sub(other, text)


@cache
def _named(tools: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"\b([Cc]all )?({'|'.join(tools)})\b(?:\(([^()]*)\))?")
