"""The words of a report: what was looked at, how it stands, and what to do about it."""

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report; `mend`: what to do, where something is to be done."""

    name: str
    state: State
    text: str
    mend: str = ""


Found = tuple[State, str, str]  # state, text, mend
OK, WARN, FAIL = State.OK, State.WARN, State.FAIL
