"""The board as a page of this server."""

import base64
import hashlib
import re
from functools import cache

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from taskorch.calls.board import page

INLINE = re.compile(r"<(script|style)\b[^>]*>(.*?)</\1\s*>", re.DOTALL | re.IGNORECASE)


async def answer(request: Request) -> Response:
    """The page, which may run the scripts that are written in it, and ask this server alone."""
    html = page()
    return HTMLResponse(html, headers={"Content-Security-Policy": policy(html)})


@cache
def policy(html: str) -> str:
    """A Content-Security-Policy by which this page works, and nothing that is slipped into it."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in INLINE.findall(html):
        digest = hashlib.sha256(text.replace("\r\n", "\n").encode()).digest()
        hashes[kind.lower()].append(f"'sha256-{base64.b64encode(digest).decode()}'")
    allowed = "".join(f"{kind}-src {' '.join(found)}; " for kind, found in hashes.items() if found)
    return (
        f"default-src 'none'; {allowed}connect-src 'self'; img-src data:; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
