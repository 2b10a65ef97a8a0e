"""Asking the person through the client, in both protocol eras, before something is lost."""

from typing import Any, cast

import mcp_types as mt
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError

ANSWER = "confirm"  # what the person's answer is filed under, in the form and in the call's second round
FORM: dict[str, Any] = {
    "type": "object",
    "properties": {ANSWER: {"type": "boolean", "title": "Yes, do it"}},
    "required": [ANSWER],
}


class FirstRound(Exception):
    """Since 2026-07-28 a server cannot ask: the call is answered with the question, and comes again with the answer."""

    def __init__(self, answer: mt.InputRequiredResult) -> None:
        super().__init__("the person is to be asked first")
        self.answer = answer


async def confirmed(
    ctx: ServerRequestContext[Any], params: mt.CallToolRequestParams, question: str, about: str
) -> bool | None:
    """The person's answer; None: this client cannot ask anybody. Raises FirstRound, to be answered with what it holds.

    `about` names the thing and its version: an answer to a question about another one does not count.
    """
    if not _can_ask(ctx):
        return None
    if ctx.session.can_send_request:
        try:
            answer: Any = await ctx.session.elicit_form(question, FORM, ctx.request_id)
        except MCPError:  # it cannot, for all that it has declared
            return None
    else:
        answer = (params.input_responses or {}).get(ANSWER)
        if answer is None or params.request_state != about:
            form = mt.ElicitRequestFormParams(message=question, requested_schema=FORM)
            ask: Any = {ANSWER: mt.ElicitRequest(params=form)}
            raise FirstRound(mt.InputRequiredResult(request_state=about, input_requests=ask))
    content = cast(dict[str, Any], getattr(answer, "content", None) or {})
    return getattr(answer, "action", None) == "accept" and content.get(ANSWER) is True


def _can_ask(ctx: ServerRequestContext[Any]) -> bool:
    capabilities = ctx.session.client_capabilities
    asks = capabilities.elicitation if capabilities is not None else None
    return asks is not None and (asks.form is not None or asks.url is None)  # an empty object means forms
