"""The board as an MCP App (`io.modelcontextprotocol/ui`, 2026-01-26): a page that hosts show in the conversation.

The SDK's own helper is made for its high-level server; what it would put on the wire is these few words.
"""

from collections.abc import Collection
from typing import Any, Literal

import mcp_types as mt

from taskorch.calls import board

EXTENSION = "io.modelcontextprotocol/ui"
MIME_TYPE = "text/html;profile=mcp-app"
LOOKS = {"ui": {"prefersBorder": True}}
RESOURCE = mt.Resource(
    uri="ui://taskorch/board.html",
    name="Board",
    title="Board",
    description="All tasks, live: the page that show_board opens.",
    mime_type=MIME_TYPE,
    _meta=LOOKS,
)

Caller = Literal["model", "app"]


def belonging(callers: Collection[Caller]) -> dict[str, Any]:
    """What a tool says of the board: who may call it, and the page itself where that opens with the tool's answer.

    Hosts hide from models what is for the page alone. The second name of the page is the one that hosts knew before the
    specification was settled.
    """
    visibility = {"visibility": [*callers]}
    if "model" not in callers:
        return {"ui": visibility}
    uri = str(RESOURCE.uri)
    return {"ui": {"resourceUri": uri, **visibility}, "ui/resourceUri": uri}


def contents() -> mt.TextResourceContents:
    return mt.TextResourceContents(uri=RESOURCE.uri, mime_type=MIME_TYPE, text=board.page(), _meta=LOOKS)
