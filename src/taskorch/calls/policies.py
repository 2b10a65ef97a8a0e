"""The retry policy as a model gives it: what is accepted, and what to write instead of other systems' words."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, cast

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo

from taskorch.calls.aliases import right_name
from taskorch.calls.arguments import DAY_SECONDS, Arguments, TaskWish
from taskorch.calls.moments import duration, number, seconds
from taskorch.domain import argv
from taskorch.domain.errors import InvalidInput, readable, shown
from taskorch.domain.kind import Kind
from taskorch.domain.readiness import NEVER_RETRIED, TRY_AGAIN, USUAL
from taskorch.domain.task import COMMAND, Retry, is_command

TOLD = 3  # words of other systems that one answer explains
STARTS = 3  # of a command whose policy says that it may be repeated, and that names no number

# Words of other systems.
ALL_STARTS = ("max_attempts", "attempts", "max_tries", "tries", "starts")
REPEATS = ("max_retries", "retries", "retry_count", "count", "times", "limit", "max")
GROWTHS = ("backoff", "backoff_type", "backoff_strategy", "strategy", "type", "policy", "mode")
CONSTANT = ("constant", "fixed", "none", "static", "flat")
DELAYS = (
    *("delay_seconds", "delay", "wait_seconds", "wait", "interval_seconds", "interval", "initial_delay_seconds"),
    *("initial_delay", "retry_delay_seconds", "retry_delay", "backoff_seconds", "min_delay_seconds", "min_delay"),
)
WISHES = {
    "jitter": "Half of every wait is chance, always; leave it out.",
    "timeout": "timeout_seconds stands beside retry, and limits each attempt.",
    "timeout_seconds": "It stands beside retry, and limits each attempt.",
    "on_timeout": "What ran too long is tried again while starts are left; leave it out.",
    "enabled": "max_attempts, beside retry, counts all starts: 1 is no retry.",
}
WORDS = (*ALL_STARTS, *REPEATS, *GROWTHS, *DELAYS, *WISHES)


def _code(value: Any) -> Any:
    if isinstance(number(value), int) and not 1 <= value <= 255:
        raise ValueError(f"{shown(value)} is no exit code of a failure; use 1 to 255 (128 + n for signal n)")
    return value


def _codes(value: Any, info: ValidationInfo) -> Any:
    found = argv.parsed(value, list)
    if type(found) is int or re.fullmatch("[0-9]{1,3}", str(found)):
        found = [found]
    usual = "every one is tried again" if info.field_name == "on_exit" else "none is given up"
    if not isinstance(found, list) or (not found and info.field_name == "on_exit"):
        raise ValueError(f"{shown(value)} names no exit codes; write them like [1, 75], or leave it out: then {usual}")
    return cast(Any, found)


Code = Annotated[int, Field(ge=1, le=255), BeforeValidator(_code)]
Codes = Annotated[list[Code], Field(max_length=255), BeforeValidator(_codes)]
Wait = Annotated[float, Field(ge=0, le=DAY_SECONDS, allow_inf_nan=False), BeforeValidator(seconds)]


class RetryWish(Arguments):
    """What can be said of retries."""

    on_exit: Codes | None = None
    fail_on_exit: Codes | None = None
    first_delay_seconds: Wait | None = None
    factor: Annotated[float, Field(ge=1, le=10, allow_inf_nan=False), BeforeValidator(number)] = USUAL.factor
    max_delay_seconds: Wait | None = None


def given_policy(wish: TaskWish, kind: Kind) -> tuple[Retry | None, int]:
    """The policy, None for the usual one, and how many starts there are in all. Raises InvalidInput.

    A command runs once by default, as it is seldom safe to repeat; whoever gives it a policy wants it repeated. Of a
    recipe the operator's number holds.
    """
    raw = wish.retry or {}
    given = {name: value for name, value in raw.items() if value is not None or name not in RetryWish.model_fields}
    if not given:
        return None, wish.max_attempts or kind.max_attempts
    ends_with_code = is_command(wish.kind)
    policy = _policy(_parsed(given), wish.kind if not ends_with_code else None)
    most = STARTS if wish.kind == COMMAND and kind.max_attempts == 1 else kind.max_attempts
    return (None if policy == USUAL else policy), wish.max_attempts or most


def _parsed(given: Mapping[str, Any]) -> RetryWish:
    known = RetryWish.model_fields
    named: dict[str, Any] = {}
    told: list[str] = []
    for name, value in given.items():
        right, meant = right_name(name, value, known)
        if right in named or (right != name and right in given):
            raise InvalidInput(f"retry.{name} and retry.{right} are the same; give {right} alone.")
        if right not in known and (advice := _advice(name, value)):
            told.append(f"Unknown argument {shown('retry.' + name)}. {advice}")
        named[right] = meant
    if told:
        raise InvalidInput(" ".join(told[:TOLD]))
    try:
        return RetryWish.model_validate(named)
    except ValidationError as error:
        raise InvalidInput(readable(error, "retry", list(known))) from None


def _policy(wish: RetryWish, codeless: str | None) -> Retry:
    """The policy that is wished for. `codeless`: the kind, if it ends without an exit code."""
    only = None if wish.on_exit is None else tuple(dict.fromkeys(wish.on_exit))
    never = tuple(dict.fromkeys(wish.fail_on_exit or ()))
    if codeless is not None and (only or never):
        raise InvalidInput(
            f"retry.{'on_exit' if only else 'fail_on_exit'} is for commands: kind {shown(codeless)} has no exit code. "
            "Leave it out; the delays and max_attempts are for every kind."
        )
    if TRY_AGAIN in never:
        raise InvalidInput(
            f"retry.fail_on_exit may not name {TRY_AGAIN} (EX_TEMPFAIL): with it a program asks to be tried again. "
            "Leave it out, or write max_attempts=1 for no retry at all."
        )
    if found := set(NEVER_RETRIED) & set(only or ()):
        raise InvalidInput(
            f"retry.on_exit may not name {min(found)}: the program was not found (127) or may not be run (126), which "
            "no retry mends. Leave it out."
        )
    if twice := sorted(set(only or ()) & set(never)):
        raise InvalidInput(f"{twice[0]} stands in retry.on_exit and in retry.fail_on_exit; give it in one of them.")
    return Retry(only, never, *_delays(wish))


def _delays(wish: RetryWish) -> tuple[float, float, float]:
    """The first wait, the factor and the longest wait; of the waits, one that is not given makes room for the other."""
    first, most = wish.first_delay_seconds, wish.max_delay_seconds
    if first is not None and most is not None and most < first:
        raise InvalidInput(
            f"retry.max_delay_seconds {most:g} is less than first_delay_seconds {first:g}; make it {first:g} or more."
        )
    if most is None:
        most = max(USUAL.max_delay_seconds, first or 0)
    return (min(USUAL.first_delay_seconds, most) if first is None else first), wish.factor, most


def _advice(name: str, value: Any) -> str | None:
    """What to write instead of another system's word."""
    word, meant = right_name(name, value, WORDS)
    if word in ALL_STARTS or word in REPEATS:
        plain = re.fullmatch("[0-9]{1,2}", str(meant))
        starts = f"={max(1, int(meant) + (word in REPEATS))}" if plain else ""
        return f"How often is no part of retry: write max_attempts{starts} beside it, which counts all starts."
    if word in GROWTHS:
        written = "factor=1" if str(meant).lower() in CONSTANT else f"factor, {USUAL.factor:g} if it is left out"
        return f"Each wait is factor times the one before, the first is first_delay_seconds: write {written}."
    if word in DELAYS:
        waits = [wait for wait in (duration(str(meant)), duration(f"{meant}s")) if wait is not None]
        return f"Write first_delay_seconds={[*waits, 5][0]:.15g}, and factor=1 if every wait is to be that long."
    return WISHES.get(word)
