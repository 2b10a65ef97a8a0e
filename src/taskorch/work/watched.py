"""What surrounds each attempt where somebody records: a span. Else nothing does."""

from taskorch.domain.task import Outcome
from taskorch.telemetry.spans import Spans
from taskorch.work.attempt import Attempt, Ending, Kind, Run


def watched(run: Run, spans: Spans | None) -> Run:
    """`run` in a span, where somebody records."""
    return run if spans is None else _traced(run, spans)


def _traced(run: Run, spans: Spans) -> Run:
    async def run_traced(kind: Kind, attempt: Attempt) -> Outcome | None:
        with spans.attempt(attempt.task, attempt.adopted) as span:
            try:
                outcome = await run(kind, attempt)
            except Exception as error:
                span.broke(error)
                raise
            span.ended(outcome, attempt.ending is Ending.LOST)
            return outcome

    return run_traced
