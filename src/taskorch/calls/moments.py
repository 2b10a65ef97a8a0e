"""Times, spans of time and numbers as models write them, and errors that say how to write them."""

import re
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationInfo

from taskorch.calls.wording import iso
from taskorch.domain.errors import shown

ZULU = re.compile(" ?(UTC|GMT|z)$")
EPOCH = re.compile(r"[0-9]{10}(?:\.[0-9]+)?|[0-9]{13}")
NUMBER = "([0-9]+(?:[.][0-9]+)?)"
DURATION = re.compile(
    f"(?:{NUMBER} ?(?:d|days?))? ?(?:{NUMBER} ?(?:h|hrs?|hours?))? ?(?:{NUMBER} ?(?:m|mins?|minutes?))? ?"
    f"(?:{NUMBER} ?(?:s|secs?|seconds?))? ?(?:{NUMBER} ?(?:ms|milliseconds?))?"
)
ISO_DURATION = re.compile(f"P(?:{NUMBER}D)?(?:T(?:{NUMBER}H)?(?:{NUMBER}M)?(?:{NUMBER}S)?)?()")
UNITS = (86_400, 3_600, 60, 1, 0.001)
STRICT = "strict"  # as a context of validation: a number is a number


def moment(value: Any, info: ValidationInfo) -> int:
    """Milliseconds since the epoch from ISO 8601 with a zone."""
    try:
        parsed = datetime.fromisoformat(ZULU.sub("Z", str(value)))
    except ValueError:
        raise ValueError(f"{shown(value)} is not a time; {_as_time(value, info.field_name)}") from None
    if parsed.tzinfo is None:
        raise ValueError(
            f"{shown(value)} has no time zone; write {parsed.isoformat()}Z or an offset like +01:00 in the place of Z"
        )
    if not 1970 <= parsed.year < 9999:
        raise ValueError(f"{shown(value)} is out of range; use a year from 1970 to 9998")
    return round(parsed.astimezone(UTC).timestamp() * 1000)


def _as_time(value: Any, field: str | None) -> str:
    """How to write what was written otherwise: epoch times as such, all else like the present."""
    epoch = float(value) if EPOCH.fullmatch(str(value)) else 0
    if epoch:
        since = epoch / 1000 if epoch >= 1e11 else epoch
        return f"write it like {iso(round(since * 1000))}, which that is as a Unix time"
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return f"write it like {now}, which is now{_as_delay(value) if field == 'run_at' else ''}"


def _as_delay(value: Any) -> str:
    """What to give instead of `run_at` for a time that counts from now."""
    given = span(re.sub(r"^(in|after|\+) ?", "", str(value)))
    if isinstance(given, float | int):
        return f"; for that time from now give delay_seconds={given:.15g}"
    return "; leave it out to start at once, and give delay_seconds to count from now"


def number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"{shown(value)} is not allowed; it must be a number")
    return value


def seconds(value: Any, info: ValidationInfo) -> Any:
    """A number; or, where the context is not STRICT, a text with its units."""
    return number(value) if info.context == STRICT else span(value)


def span(value: Any) -> Any:
    """A number of seconds from a text with its units; any other text as it is."""
    given = duration(value) if isinstance(value, str) else None
    return number(value) if given is None else given


def duration(text: str) -> float | None:
    """Seconds from a text with its units, like 90s, 5 minutes, 1h30m or PT30S; None for any other."""
    text = text.strip() if len(text) <= 40 else ""
    found = DURATION.fullmatch(text) or ISO_DURATION.fullmatch(text)
    given = [(float(part), unit) for part, unit in zip(found.groups(), UNITS, strict=True) if part] if found else []
    return sum(part * unit for part, unit in given) if given else None
