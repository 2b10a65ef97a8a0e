"""Results that flow from task to task: `{"$result": "<task>", "path": "items[0].url"}` as a value in a payload."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

from taskorch.domain import paths
from taskorch.domain.errors import InvalidInput, cut, shown

KEY = "$result"
MOST = 1_000  # in one payload
FILLED_BYTES = 262_144  # of a payload whose references are filled in, as JSON


@dataclass(frozen=True, slots=True)
class Reference:
    """The task whose result is wanted, and (JMESPath) which part of it; None is all of it."""

    task: str
    path: str | None


def find(payload: Any) -> list[Reference]:
    """All references in a payload. Raises InvalidInput for what looks like one and is none."""
    found = [_read(value) for value in islice(_each(payload), MOST + 1)]
    if len(found) > MOST:
        raise InvalidInput(f"payload takes more than {MOST} results. Let another task gather some of them.")
    return found


def renamed(payload: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The payload with its references to the tasks that `names` has by those names."""
    return _replaced(payload, lambda value: value | {KEY: names.get(value[KEY], value[KEY])})


def filled(payload: Mapping[str, Any], value: Callable[[Reference], Any]) -> dict[str, Any]:
    """The payload with what `value` gives in the place of each reference."""
    return _replaced(payload, lambda found: value(_read(found)))


def part(document: Any, reference: Reference) -> Any:
    """What the reference's path finds in a document. Raises InvalidInput when that is nothing."""
    if reference.path is None:
        return document
    where = f"path {shown(reference.path)} of the result of {reference.task}"
    try:
        found = paths.search(reference.path, document)
    except ValueError as error:
        raise InvalidInput(f"{where} does not fit it: {error}") from None
    if found is None:
        names = cut(", ".join(cast(dict[str, Any], document))) if isinstance(document, dict) else ""
        raise InvalidInput(f"{where} finds nothing; {f'it has {names}' if names else 'it is no object'}.")
    return found


def _each(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if KEY in value:
            yield cast(dict[str, Any], value)
            return
        value = list(cast(dict[str, Any], value).values())
    if isinstance(value, list):
        for item in cast(list[Any], value):
            yield from _each(item)


def _replaced(value: Any, change: Callable[[dict[str, Any]], Any]) -> Any:
    if isinstance(value, Mapping):
        found = cast(dict[str, Any], value)
        return change(found) if KEY in found else {name: _replaced(item, change) for name, item in found.items()}
    if isinstance(value, list):
        return [_replaced(item, change) for item in cast(list[Any], value)]
    return value


def _read(value: dict[str, Any]) -> Reference:
    task, path = value[KEY], value.get("path")
    example = f'write {{"{KEY}": "id or ref of a task", "path": "output"}}, and path only if needed'
    if not isinstance(task, str) or not task:
        raise InvalidInput(f"{KEY} {shown(task)} names no task; {example}.")
    if others := sorted(value.keys() - {KEY, "path"}):
        raise InvalidInput(f"{shown(others[0])} cannot stand beside {KEY}; {example}.")
    if path is not None:
        paths.check(path)
    return Reference(task, path)
