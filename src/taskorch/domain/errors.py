"""What a caller may be told. Every message here is written to be shown to a model or a person."""

import difflib
import re
from collections.abc import Collection, Sequence

from pydantic import ValidationError
from pydantic_core import ErrorDetails

SHOWN_CHARACTERS = 80
RETRY_AFTER_MOST_SECONDS = 86_400.0


class TaskError(Exception):
    """Base of the errors whose text is safe to show: what was wrong, what is allowed, what to do next."""


class InvalidInput(TaskError):
    """An argument is outside what is allowed; nothing was stored."""


class NotFound(TaskError):
    """No task, attempt or resource bears that name."""


class Conflict(TaskError):
    """The task's present status (or version) does not allow the change; nothing was changed."""


class Crowded(Conflict):
    """More tasks would wait or work than may; nothing was stored."""


class StoreError(TaskError):
    """The database could not be used: busy, full, unreadable, or written by a newer taskorch."""


class NonRetryable(Exception):
    """Raised by a handler: the attempt failed, and another one would fail too."""


class RetryAfter(Exception):
    """Raised by a handler: the attempt failed, and the next start comes in `seconds` instead of after the backoff.

    Numbers below 0 count as 0, those above 86,400 as that: they often are another server's word. Raises ValueError for
    NaN. It grants no start: `max_attempts` still holds.
    """

    def __init__(self, seconds: float, message: str = "") -> None:
        if seconds != seconds:  # NaN alone
            raise ValueError("RetryAfter needs a number of seconds, not nan")
        self.seconds = min(max(float(seconds), 0.0), RETRY_AFTER_MOST_SECONDS)
        super().__init__(message or f"again in {self.seconds:g} s")


def readable(error: ValidationError, where: str = "", known: Sequence[str] = ()) -> str:
    """One sentence for each mistake: the argument, the value, what is allowed. `known`: names to suggest from.

    `where` is put before the names (`payload.seconds`). No pydantic text, no URLs; values are cut at 80 characters.
    """
    mistakes = error.errors(include_url=False)[:5]
    unknown = any(mistake["type"] == "extra_forbidden" for mistake in mistakes)
    allowed = [f"Allowed: {', '.join(known)}."] if known and unknown else []
    return " ".join([_sentence(mistake, where, known) for mistake in mistakes] + allowed)


def shown(value: object) -> str:
    """A value as a sentence may quote it: at most 80 characters, on one line, without what cannot be encoded."""
    text = repr(value) if isinstance(value, str) else str(value)
    return cut(text.encode("utf-8", "backslashreplace").decode().replace("\n", " "))


def cut(text: str) -> str:
    """At most 80 characters, an ellipsis included where something is missing."""
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


def snake_case(name: str) -> str:
    """A name as ours are written: `taskId` and `task-id` as `task_id`."""
    return re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace("-", "_")


def did_you_mean(name: str, known: Collection[str]) -> str:
    """` Did you mean 'x'?`, or nothing when no known name is near."""
    word = name.lower().strip().replace(" ", "_")
    near = [right for right, words in _SYNONYMS.items() if right in known and word in words.split()]
    spelled = {word.lower(): word for word in known}
    near += [spelled[word] for word in difflib.get_close_matches(name.lower(), spelled, n=1, cutoff=0.6)]
    return f" Did you mean {near[0]!r}?" if near else ""


def _sentence(mistake: ErrorDetails, where: str, known: Sequence[str]) -> str:
    steps = [str(part) for part in mistake["loc"] if part != "[key]"]  # pydantic's word for a wrong name
    path = cut(".".join([*filter(None, [where]), *steps])) or "The arguments"
    value, ctx = mistake["input"], mistake.get("ctx", {})
    match mistake["type"]:
        case "missing":
            return f"{path} is required; add it.{_WHENCE.get(path, '')}"
        case "extra_forbidden":
            name = str(mistake["loc"][-1])
            return f"Unknown argument {shown(path)}.{did_you_mean(name, known)}"
        case "literal_error" | "enum":
            near = did_you_mean(value, re.findall("'(.*?)'", ctx["expected"])) if isinstance(value, str) else ""
            return f"{path} {shown(value)} is not allowed; use {ctx['expected']}.{near}"
        case "value_error":
            return f"{path} {ctx['error']}."
        case kind if kind in _LIMITS:
            whence = _WHENCE.get(path, "") if kind == "too_short" else ""
            return f"{path} {shown(value)} is not allowed; it must {_LIMITS[kind].format(**ctx)}.{whence}"
        case kind:
            wanted = next((text for prefix, text in _TYPES.items() if kind.startswith(prefix)), None)
            return f"{path} {shown(value)} is not allowed; it must be {wanted or 'of another type'}."


# Where to find what is required.
_WHENCE = {
    "task_id": " list_tasks shows ids and names.",
    "task_ids": " list_tasks shows ids and names.",
    "payload.argv": ' Write payload={"argv": ["git", "fetch"]}.',
}
# What other systems call it. Names that can mean one thing only are understood: see aliases.py.
_SYNONYMS = {
    "command": "shell bash sh cmd script process exec subprocess program cli run python python3 job terminal",
    "sleep": "delay wait timer",
    "waiting": "pending queued todo open scheduled not_started paused blocked ready backoff",
    "working": "running active in_progress started processing executing",
    "completed": "done success succeeded complete finished ok",
    "failed": "error errored failure timeout",
    "cancelled": "canceled aborted killed stopped terminated",
    "medium": "normal default",
    "high": "urgent critical highest",
    "low": "lowest background",
    "all": "completed done finished ended every",
    "any": "first one either",
    "cwd": "directory dir path folder",
    "argv": "script shell bash command_line args",
    "survive": "continue keep detach",
    "full": "all verbose detailed details",
    "max_attempts": "attempts tries",
    "on_exit": "exit_codes codes on retry_on retry_on_exit retry_codes retryable_exit_codes",
    "fail_on_exit": "no_retry_on abort_on stop_on fail_on non_retryable_exit_codes",
    "factor": "multiplier backoff_factor backoff_multiplier backoff_coefficient exponential_base base",
    "max_delay_seconds": "cap max_interval max_backoff max_wait maximum_interval",
    "payload": "args arguments input params parameters data body options config",
    "wait_seconds": "wait block wait_timeout timeout_wait",
    "timeout_seconds": "timeout wait max_wait wait_seconds seconds max_seconds",
    "delay_seconds": "delay in wait_before start_in countdown eta_seconds",
    "run_at": "at when start_at scheduled_at schedule scheduled_for start_time eta not_before",
    "expires_at": "deadline ttl expires expires_in",
    "name": "description",
    "cron": "cron_expression expression crontab rrule",
    "every_seconds": "every interval seconds repeat period",
    "time_zone": "timezone tz zone",
    "catch_up": "misfire misfire_policy backfill missed",
    "overlap": "concurrency_policy concurrent allow_overlap",
    "tail_bytes": "limit max_bytes bytes max_chars max_length",
    "grep": "pattern search filter query regex text match",
    "text": "query search q name contains keyword",
    "cursor": "page_token next_cursor",
    "created_after": "since after from newer_than start_time",
    "created_before": "before older_than to end_time",
    "limit": "page_size per_page max_results count max n top",
    "until": "mode wait_for condition return_when",
    "confirm": "force yes confirmed sure",
    "expected_version": "version if_version",
}
_LIMITS = {
    "greater_than": "be greater than {gt:.15g}",
    "greater_than_equal": "be at least {ge:.15g}",
    "less_than": "be less than {lt:.15g}",
    "less_than_equal": "be at most {le:.15g}",
    "string_too_short": "have {min_length} or more characters",
    "string_pattern_mismatch": "match {pattern}",
    "string_too_long": "have at most {max_length} characters",
    "too_short": "have {min_length} or more items",
    "too_long": "have at most {max_length} items",
    "finite_number": "be a finite number",
}
_TYPES = {
    "int_from_float": "a whole number",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a string",
    "list": "an array",
    "tuple": "an array",
    "dict": "an object",
    "mapping": "an object",
    "model": "an object",
    "dataclass": "an object",
    "none": "null",
}
