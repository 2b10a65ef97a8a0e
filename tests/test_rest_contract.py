"""The REST API keeps its OpenAPI document, whatever it is sent: schemathesis makes the requests up and checks answers.

The deeper run: `pytest -m slow tests/test_rest_contract.py`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from rests import URL, WITH_TOKEN, Application, closed
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import Status, events, from_schema
from schemathesis.python.asgi import shutdown_lifespans
from starlette.types import ASGIApp

SEED = 20_261_129
CHECKS: dict[str, Any] = {
    # Rules between fields and against what is stored are in no schema: a time that has passed, a kind's own payload.
    "positive_data_acceptance": {"expected-statuses": ["2xx", "400", "404", "409"]},
}


@pytest.fixture
def app(tmp_path: Path) -> Iterator[ASGIApp]:
    """Of a server that runs `echo` and `sleep`, and no commands."""
    yield Application(closed(tmp_path, toolsets="core,worker"))
    shutdown_lifespans()


def broken(app: ASGIApp, max_examples: int, phases: tuple[str, ...]) -> tuple[list[str], int]:
    """What did not keep the document, and how many requests were made."""
    config = SchemathesisConfig.from_dict(
        {
            "seed": SEED,
            "continue-on-failure": True,
            "headers": WITH_TOKEN,
            "base-url": URL,
            "generation": {"max-examples": max_examples, "deterministic": True, "database": "none"},
            "checks": CHECKS,
            "phases": {name: {"enabled": name in phases} for name in ("examples", "coverage", "fuzzing", "stateful")},
        }
    )
    host = URL.removeprefix("http://")
    schema = schemathesis.openapi.from_asgi(
        "/api/openapi.json", app, config=config, headers=WITH_TOKEN | {"Host": host}
    )
    found: list[str] = []
    requests = 0
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            requests += len(event.recorder.interactions)
            found += [
                f"{event.recorder.label}: {check.failure_info.failure}\n{check.failure_info.code_sample}"
                for checks in event.recorder.checks.values()
                for check in checks
                if check.status is Status.FAILURE and check.failure_info
            ]
        elif isinstance(event, events.NonFatalError | events.FatalError):
            found.append(str(getattr(event, "info", event)))
    return found, requests


def test_no_request_is_answered_otherwise_than_the_document_says(app: ASGIApp) -> None:
    found, requests = broken(app, 10, ("examples", "coverage", "fuzzing"))
    assert not found, "\n\n".join(found[:5])
    assert requests > 500


@pytest.mark.slow
def test_nor_is_any_of_very_many_nor_one_after_the_other(app: ASGIApp) -> None:
    found, requests = broken(app, 300, ("examples", "coverage", "fuzzing", "stateful"))
    assert not found, "\n\n".join(found[:5])
    assert requests > 2000
