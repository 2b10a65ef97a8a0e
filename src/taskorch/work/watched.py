"""What surrounds each attempt where somebody observes: a span, and its task's id on log lines. Else nothing does."""

from taskorch.domain.task import Outcome
from taskorch.telemetry import context
from taskorch.telemetry.spans import Spans
from taskorch.work.attempt import Attempt, Ending, Kind, Run


def watched(run: Run, spans: Spans | None, named: bool) -> Run:
    """`run` in a span, where somebody records, and, if log lines are to be `named`, with its task known to them."""
    run = _named(run) if named else run
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


def _named(run: Run) -> Run:
    async def run_named(kind: Kind, attempt: Attempt) -> Outcome | None:
        token = context.ATTEMPT.set((attempt.task.id, attempt.task.attempt))
        try:
            return await run(kind, attempt)
        finally:
            context.ATTEMPT.reset(token)

    return run_named
