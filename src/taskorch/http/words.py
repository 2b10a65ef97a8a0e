"""Texts that were written for those who call tools, as one says them over HTTP."""

import re

from taskorch.calls.rewording import reworded
from taskorch.calls.wording import Facts

REQUESTS = {
    "create_tasks": "POST /api/tasks",
    "create_task": "POST /api/tasks",
    "list_tasks": "GET /api/tasks",
    "get_task_output": "GET /api/tasks/{}/output",
    "get_task": "GET /api/tasks/{}",
    "update_task": "PUT /api/tasks/{}",
    "cancel_task": "POST /api/tasks/{}/cancel",
    "retry_task": "POST /api/tasks/{}/retry",
    "delete_task": "DELETE /api/tasks/{}",
    "wait_for_tasks": "GET /api/tasks/{}",
    "get_stats": "GET /api/statistics",
}
_FLAG = re.compile(r"\w+=(?:true|false)")


def told(text: str, task_id: str = "{task_id}") -> str:
    """The same with requests in the place of tools and calls of them. `task_id`: of the task that it is about."""
    return reworded(text, REQUESTS, "send", lambda tool: REQUESTS[tool].format(task_id), _request)


def told_facts(facts: Facts) -> Facts:
    """The same for a program: without the call that a model would make next."""
    said = {"hint": told(facts["hint"])} if "hint" in facts else {}
    return {name: value for name, value in facts.items() if name != "next"} | said


def _request(tool: str, task: str | None, arguments: str) -> str:
    """`update_task(task_id="t1", paused=true)` is `PUT /api/tasks/t1 with paused=true`."""
    flag = _FLAG.search(arguments)
    return REQUESTS[tool].format(task or "{task_id}") + (f" with {flag[0]}" if flag else "")
