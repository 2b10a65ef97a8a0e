"""Texts that were written for those who call tools, as one says them over HTTP."""

import re

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
_TOOLS = "|".join(REQUESTS)  # the longer of two that begin alike comes first
_CALL = re.compile(rf"\b({_TOOLS})\(([^()]*)\)")
_TOOL = re.compile(rf"\b(?:([Cc])all )?({_TOOLS})\b")


def told(text: str, task_id: str = "{task_id}") -> str:
    """The same with requests in the place of tools and calls of them. `task_id`: of the task that it is about."""
    text = _CALL.sub(lambda found: REQUESTS[found[1]].format(_task(found[2])), text)
    return _TOOL.sub(lambda found: f"{_send(found[1])}{REQUESTS[found[2]].format(task_id)}", text)


def told_facts(facts: Facts) -> Facts:
    """The same for a program: without the call that a model would make next."""
    said = {"hint": told(facts["hint"])} if "hint" in facts else {}
    return {name: value for name, value in facts.items() if name != "next"} | said


def _task(arguments: str) -> str:
    found = re.search(r"task_ids?=\[?['\"]([^'\"]+)['\"]", arguments)
    return found[1] if found else "{task_id}"


def _send(call: str | None) -> str:
    return {"C": "Send ", "c": "send "}.get(call or "", "")
