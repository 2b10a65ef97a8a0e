"""What a request asks for, read strictly: each thing once, by a name that is known, in JSON that can mean one thing."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NoReturn, cast

from starlette.exceptions import HTTPException
from starlette.requests import Request

from taskorch.domain.errors import InvalidInput, shown

JSON = re.compile(r'application/json\s*(;\s*charset\s*=\s*"?utf-8"?\s*)?', re.IGNORECASE)
SYNONYMS: Mapping[str, tuple[str, ...]] = {"tags": ("labels", "label")}
VERSION = re.compile('"([0-9]{1,16})"')
Raw = dict[str, Any]


def query(request: Request, known: Collection[str]) -> Raw:
    """The query by the names that are `known`; what is not among them is kept. Raises InvalidInput."""
    return _named(request.query_params.multi_items(), known)


def refuse_query(request: Request) -> None:
    """Raise InvalidInput for a query where there can be none."""
    for name in request.query_params:
        raise InvalidInput(f"Unknown argument {shown(name)}: nothing can be asked for behind a ? here.")


async def body(request: Request, known: Collection[str], *, needed: bool) -> Raw:
    """The JSON object that was sent, by the names that are `known`; none is an empty one unless it is `needed`.

    Raises InvalidInput, and HTTPException (415) for what is not called JSON.
    """
    sent = await request.body()
    if not sent and not needed:
        return {}
    given = request.headers.get("content-type", "")
    if sent and not JSON.fullmatch(given.strip()):
        raise HTTPException(415, f"Content-Type {shown(given)} is not read here; send application/json, in UTF-8.")
    value = _json(sent)
    if not isinstance(value, dict):
        raise InvalidInput(f"The body is {_kind(value)}; it must be a JSON object.")
    return _named(cast(Raw, value).items(), known)


def condition(request: Request, raw: Mapping[str, Any], understood: bool) -> Raw:
    """What If-Match demands, as an argument beside what is in `raw`.

    Raises InvalidInput for what is not one version, and where it is not `understood`: it must not be passed over.
    """
    given = request.headers.getlist("if-match")
    if not given or request.method in ("GET", "HEAD") or (understood and given == ["*"]):
        return {}
    if not understood:
        raise InvalidInput("If-Match is understood by PUT alone; leave it out.")
    if len(given) > 1 or not (found := VERSION.fullmatch(given[0].strip())):
        raise InvalidInput(f'If-Match {shown(", ".join(given))} is not one ETag of a task; send one like "3", or *.')
    version = int(found[1])
    if (beside := raw.get("expected_version")) is None:
        return {"expected_version": version}
    if beside != version:
        raise InvalidInput("If-Match and expected_version differ; give one of them.")
    return {}


def _named(pairs: Iterable[tuple[str, Any]], known: Collection[str]) -> Raw:
    found: Raw = {}
    for name, value in pairs:
        right = next((right for right in SYNONYMS.get(name, ()) if right in known), name)
        if right in found:
            raise InvalidInput(f"{shown(right)} is given twice; give it once.")
        found[right] = value
    return found


def _json(sent: bytes) -> Any:
    try:
        return json.loads(sent.decode(), object_pairs_hook=_once, parse_constant=_no_number)
    except UnicodeDecodeError:
        raise InvalidInput("The body is not UTF-8; send JSON in UTF-8.") from None
    except RecursionError:
        raise InvalidInput("The body is nested too deeply; flatten it.") from None
    except ValueError as error:  # also a number with thousands of digits
        raise InvalidInput(
            f"The body is {'not JSON: ' + str(error) if sent else 'empty'}; send a JSON object."
        ) from None


def _once(pairs: list[tuple[str, Any]]) -> Raw:
    """Of a name that stands twice readers keep the one or the other, so nobody knows what was meant."""
    found: Raw = {}
    for name, value in pairs:
        if name in found:
            raise InvalidInput(f"The name {shown(name)} stands twice in one object of the body; give it once.")
        found[name] = value
    return found


def _no_number(text: str) -> NoReturn:
    raise InvalidInput(f"{text} is no JSON; use null or a string.")


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case list():
            return "an array"
        case str():
            return "a string"
        case bool():
            return "true or false"
        case _:
            return "a number"
