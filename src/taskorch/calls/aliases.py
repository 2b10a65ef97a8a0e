"""What models write instead of the contract's arguments, understood where only one thing can be meant.

The published schemas stay closed and name none of this. What could mean two things is answered with the right name.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, cast

from taskorch.domain import argv
from taskorch.domain.errors import InvalidInput, shown, snake_case
from taskorch.domain.task import RECIPE
from taskorch.storage.ids import FULL_ID

Raw = dict[str, Any]

RENAMED = {
    "id": ("task_id", "task_ids"),
    "ids": ("task_ids", "task_id"),
    "task": ("task_id", "task_ids"),
    "tasks": ("task_ids", "task_id"),
    "task_id": ("task_ids",),
    "task_ids": ("task_id",),
    "name": ("task_id", "task_ids"),
    "names": ("task_ids",),
    "task_name": ("name", "task_id", "task_ids"),
    "state": ("status",),
    "tag": ("labels", "label"),
    "tags": ("labels", "label"),
    "label": ("labels",),
    "labels": ("label",),
    "title": ("name",),
    "type": ("kind",),
    "idempotency_key": ("dedupe_key",),
    **dict.fromkeys(("after", "dependencies", "dependency", "needs", "requires", "blocked_by"), ("depends_on",)),
    **dict.fromkeys(("depends", "parent", "parents", "parent_id", "parent_ids", "upstream"), ("depends_on",)),
    **dict.fromkeys(("on_parent_failure", "on_failure", "trigger_rule"), ("on_dependency_failure",)),
    "worker_id": ("worker",),
    "worker_name": ("worker",),
    "agent": ("worker",),
    "agent_id": ("worker",),
    "agent_name": ("worker",),
    "work_dir": ("work_directory",),
    "work_path": ("work_directory",),
    "working_directory": ("work_directory",),
    "directory": ("work_directory",),
    "cwd": ("work_directory",),
    "lease_seconds": ("claim_seconds",),
    "attempt_number": ("attempt",),
    "output": ("result",),
    "value": ("progress",),
}
ARRAYS = ("task_ids", "labels", "depends_on")
IDS = ("task_ids", "depends_on")
SINGLE = ("task_id", "status", "label")  # of which a list with one item can only mean that item
RETRIES = ("max_retries", "retries", "retry_count", "retry")
POLICY = '{"on_exit": [75], "first_delay_seconds": 5}'
UNITS = {"ms": 0.001, "millis": 0.001, "milliseconds": 0.001, "minutes": 60, "hours": 3600, "days": 86_400}
# Around all arguments, when nothing stands beside; around those that change something or choose, beside others.
WHOLE = ("arguments", "args", "input", "params", "parameters", "request", "task", "body", "properties", "payload")
PARTS = ("changes", "updates", "fields", "patch", "filter", "filters")
FILTERS = (
    *("status", "kind", "priority", "label", "text", "created_after", "created_before", "cursor", "grep"),
    *("work_directory", "worker"),
)


def understood(raw: Mapping[str, Any], known: Collection[str]) -> Raw:
    """The arguments of a call by the names that its tool has (`known`). Raises InvalidInput for what is ambiguous."""
    arguments: Raw = {}
    for name, value in _unwrapped(raw, known).items():
        right, meant = right_name(name, value, known)
        if meant == "" and right in FILTERS and "payload" not in known:
            continue  # strict schemas make a model fill in every argument; where nothing is changed, "" is none
        if right in arguments or (right != name and right in raw):
            raise InvalidInput(f"{shown(name)} and {right} are the same argument; give {right} alone.")
        arguments[right] = meant
    if "payload" in arguments:
        arguments["payload"] = argv.parsed(arguments["payload"], dict)
    if "schedule" in known and isinstance(text := arguments.get("schedule"), str):
        given = argv.parsed(text, dict)
        arguments["schedule"] = {"cron": text} if given is text else given
    if "payload" in known and "kind" in known:
        _gather_command(arguments, known)
    if "retry" in known and "retry" in arguments:
        arguments["retry"] = argv.parsed(arguments["retry"], dict)
    _refuse_retries(arguments, known)
    if "payload" in known and "kind" in known:
        _gather_slots(arguments, known)
    for name in arguments.keys() & set(ARRAYS):
        arguments[name] = argv.parsed(arguments[name], list)
    _gather_ids(arguments)
    return arguments


def _unwrapped(raw: Mapping[str, Any], known: Collection[str]) -> Mapping[str, Any]:
    """The arguments without an object that somebody put around all or some of them."""
    creates = "kind" in known and "payload" in known
    for name, value in raw.items():
        whole = len(raw) == 1 and name in WHOLE
        part = name in PARTS and name not in known and not creates
        inner = cast(Raw, argv.parsed(value, dict)) if whole or part else None
        if not isinstance(inner, dict) or inner.keys() & (raw.keys() - {name}):
            continue
        fits = all(right_name(key, None, known)[0] in known or (creates and key in argv.NAMES) for key in inner)
        if fits and (name not in known or "payload" in inner):
            return {key: item for key, item in raw.items() if key != name} | inner
    return raw


def right_name(name: str, value: Any, known: Collection[str]) -> tuple[str, Any]:
    """Of the `known` names that of what is called so, and its value in that name's unit; else both as they are."""
    if name in known:
        return name, value
    snake = snake_case(name)
    found = next((right for right in (snake, *RENAMED.get(snake, ())) if right in known), None)
    if found:
        return found, value
    stem, _, unit = snake.rpartition("_")
    timed = f"{stem}_seconds"
    if timed in known and unit in UNITS and type(value) in (int, float) and abs(value) < 1e12:
        return timed, round(value * UNITS[unit], 6)
    return name, value


def _refuse_retries(arguments: Raw, known: Collection[str]) -> None:
    """`max_retries` counts what comes after the first start, in most systems; whoever says so must choose."""
    for name in RETRIES:
        value: Any = arguments.get(name)
        if name not in arguments or "max_attempts" not in known or (name == "retry" and isinstance(value, dict | None)):
            continue
        plain = type(value) in (int, str) and re.fullmatch("[0-9]{1,2}", str(value))
        right = f"; for {value} retries write max_attempts={int(value) + 1}" if plain else ", so 1 is no retry"
        wrong = f"{name} {shown(value)} is no object like {POLICY}" if name in known else f"Unknown argument {name!r}"
        raise InvalidInput(f"{wrong}. max_attempts counts all starts, the first included{right}.")


def _gather_ids(arguments: Raw) -> None:
    """One where one is wanted, a list where a list is, of names instead of objects that have them."""
    for name in SINGLE:
        value = arguments.get(name)
        if isinstance(value, list) and len(cast(list[Any], value)) == 1:
            arguments[name] = value[0]
    if "task_id" in arguments:
        arguments["task_id"] = _id(arguments["task_id"])
        if isinstance(ids := arguments["task_id"], list) and ids:
            first = shown(_id(cast(list[Any], ids)[0]))
            count = len(cast(list[Any], ids))
            raise InvalidInput(f"This takes one task, not {count}: call it once for each, first with task_id={first}.")
    for name in ARRAYS:
        value = arguments.get(name)
        if isinstance(value, str):
            words = [word for word in re.split(r"[,\s]+", value) if word]
            arguments[name] = words if len(words) > 1 and all(map(FULL_ID.fullmatch, words)) else [value]
        elif name in IDS and isinstance(value, list):
            arguments[name] = [_id(item) for item in cast(list[Any], value)]
        elif name in IDS and _id(value) != value:
            arguments[name] = [_id(value)]


def _id(value: Any) -> Any:
    """The id of an object that is a task, as replies show one."""
    task = cast(Raw, value) if isinstance(value, dict) else {}
    found = [task[name] for name in ("id", "task_id") if isinstance(task.get(name), str)]
    return found[0] if len(found) == 1 else cast(Any, value)


def _gather_command(arguments: Raw, known: Collection[str]) -> None:
    """Bring a command that was given beside its payload, or under another name in it, into payload.argv."""
    kind = "command" if arguments.get("kind") is None else arguments["kind"]
    if kind in argv.SHELL_KINDS and (beside := [name for name in argv.NAMES if name in arguments]):
        text = f'Unknown argument {beside[0]!r}, and a program is of the kind "command", which you may leave out.'
        raise InvalidInput(f'{text} Write payload={{"argv": ["git", "fetch"]}}.')
    if kind != "command":
        return
    given = argv.as_payload(arguments.get("payload"))
    if given is not None and not isinstance(given, dict):
        return
    payload = cast(Raw, given or {})
    if outside := _outside(payload, arguments, known):
        arguments |= {right: value for _, right, value in outside}
        left = payload.keys() - {name for name, _, _ in outside}
        arguments["payload"] = {name: value for name, value in payload.items() if name in left}
        return _gather_command(arguments, known)
    beside = {name: arguments.pop(name) for name in argv.NAMES if name in arguments}
    if twice := beside.keys() & payload.keys():
        raise InvalidInput(f"{min(twice)} stands both beside payload and in it; give it in payload alone.")
    if found := argv.with_argv(payload | beside):
        arguments["payload"] = found


def _gather_slots(arguments: Raw, known: Collection[str]) -> None:
    """Bring what a recipe takes into its payload, where there is none and it stands beside."""
    if str(arguments.get("kind")).startswith(RECIPE) and not arguments.get("payload"):
        if beside := {name: value for name, value in arguments.items() if name not in known}:
            arguments["payload"] = beside
        for name in beside:
            del arguments[name]


def _outside(payload: Raw, arguments: Raw, known: Collection[str]) -> list[tuple[str, str, Any]]:
    """What stands in a command's payload but is an argument of the tool: its name, the right one, and the value."""
    found: list[tuple[str, str, Any]] = []
    for name in [name for name in payload if name not in argv.NAMES]:
        right, meant = right_name(name, payload[name], known)
        is_taken = right in arguments or right in (other for _, other, _ in found)
        if right in known and right != "payload" and not is_taken and (right != "kind" or meant == "command"):
            found.append((name, right, meant))
    return found
