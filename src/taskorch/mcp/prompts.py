"""The prompts that a person picks in a host: listing them, filling one from the store, completing its arguments."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mcp_types as mt
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError

from taskorch.calls.service import Service
from taskorch.calls.wording import clean_text, visible
from taskorch.domain.errors import InvalidInput, NotFound, did_you_mean, shown
from taskorch.mcp import briefs

Ctx = ServerRequestContext[Any]

SUGGESTED = 100


@dataclass(frozen=True, slots=True)
class Argument:
    """All are required. `suggest`: what may be meant by what was typed so far; `most`: its bytes."""

    name: str
    description: str
    suggest: Callable[[Service, str], Awaitable[list[str]]] | None = None
    most: int = briefs.ASKED_BYTES


@dataclass(frozen=True, slots=True)
class Prompt:
    """`write` makes the text; it is given the service and the arguments in their order."""

    write: Callable[..., Awaitable[str]]
    title: str
    description: str
    arguments: tuple[Argument, ...] = ()


async def suggest_tasks(service: Service, start: str) -> list[str]:
    """Ids and names, those of failed tasks first. A name that shows otherwise than it is written is left out."""
    words = await service.queries.suggest(start, SUGGESTED + 1)
    return [word for word in words if visible(word) == word]


async def suggest_times(service: Service, start: str) -> list[str]:
    """Examples, each one word: some hosts split what is typed at spaces."""
    return [time for time in briefs.example_times(service.store.now()) if time.casefold().startswith(start.casefold())]


PROMPTS: Mapping[str, Prompt] = {
    "standup": Prompt(
        briefs.standup,
        "Standup",
        "What ended, failed, runs and waits: the last 24 hours of background tasks.",
    ),
    "diagnose_failure": Prompt(
        briefs.diagnose_failure,
        "Diagnose a failure",
        "Why a task failed and what to do: its error, attempts and last output.",
        (Argument("task", "id or name of the task", suggest_tasks, most=800),),
    ),
    "plan_pipeline": Prompt(
        briefs.plan_pipeline,
        "Plan a pipeline",
        "Break a goal into background tasks, in an order that works.",
        (Argument("goal", "what is to be reached"),),
    ),
    "schedule": Prompt(
        briefs.schedule,
        "Schedule",
        "Have a background task start later, or again and again.",
        (
            Argument("what", "what is to be done"),
            Argument("when", "10min, 2h, tomorrow, 2026-11-24T18:00Z, ...", suggest_times, most=100),
        ),
    ),
}


class Prompts:
    """Answers what clients ask about prompts."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def list(self, ctx: Ctx, params: mt.PaginatedRequestParams | None) -> mt.ListPromptsResult:
        return mt.ListPromptsResult(prompts=[_describe(name, prompt) for name, prompt in PROMPTS.items()])

    async def get(self, ctx: Ctx, params: mt.GetPromptRequestParams) -> mt.GetPromptResult:
        prompt = _find(params.name)
        try:
            text = await prompt.write(self._service, *_values(params.name, prompt, params.arguments or {}))
        except (InvalidInput, NotFound) as error:
            raise MCPError(mt.INVALID_PARAMS, clean_text(str(error))) from None
        message = mt.PromptMessage(role="user", content=mt.TextContent(text=clean_text(text)))
        return mt.GetPromptResult(description=prompt.description, messages=[message])

    async def complete(self, ctx: Ctx, params: mt.CompleteRequestParams) -> mt.CompleteResult:
        """Only for references to prompts."""
        assert isinstance(params.ref, mt.PromptReference)
        arguments = {argument.name: argument for argument in _find(params.ref.name).arguments}
        asked = arguments.get(params.argument.name)
        found = await asked.suggest(self._service, params.argument.value) if asked and asked.suggest else []
        more = len(found) > SUGGESTED
        return mt.CompleteResult(completion=mt.Completion(values=found[:SUGGESTED], total=None, has_more=more))


def _describe(name: str, prompt: Prompt) -> mt.Prompt:
    arguments = [mt.PromptArgument(name=a.name, description=a.description, required=True) for a in prompt.arguments]
    return mt.Prompt(name=name, title=prompt.title, description=prompt.description, arguments=arguments)


def _find(name: str) -> Prompt:
    if name not in PROMPTS:
        hint = did_you_mean(name, PROMPTS) or f" Use one of: {', '.join(PROMPTS)}."
        raise MCPError(mt.INVALID_PARAMS, clean_text(f"Unknown prompt: {shown(name)}.{hint}"))
    return PROMPTS[name]


def _values(name: str, prompt: Prompt, given: Mapping[str, str]) -> list[str]:
    """The arguments in their order. Raises InvalidInput."""
    known = [argument.name for argument in prompt.arguments]
    for extra in given.keys() - set(known):
        allowed = f"it takes {', '.join(known)}" if known else "it takes none"
        raise InvalidInput(f"{name} has no argument {shown(extra)}; {allowed}.")
    return [_value(name, argument, given.get(argument.name, "").strip()) for argument in prompt.arguments]


def _value(name: str, argument: Argument, value: str) -> str:
    if not value:
        raise InvalidInput(f"{name} needs the argument {argument.name}: {argument.description}.")
    if (size := len(value.encode("utf-8", "replace"))) > argument.most:
        raise InvalidInput(f"{argument.name} has {size} bytes; at most {argument.most} are allowed.")
    return value
