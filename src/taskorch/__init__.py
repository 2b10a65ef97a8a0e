"""Durable background tasks for MCP clients.

What handlers are written with is loaded when it is asked for: see `cli.start`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskorch.domain.errors import NonRetryable, RetryAfter
    from taskorch.work.handlers import Context, handler

__all__ = ["Context", "NonRetryable", "RetryAfter", "__version__", "handler"]
__version__ = "0.1.0"

_PLACES = {
    "Context": "work.handlers",
    "handler": "work.handlers",
    "NonRetryable": "domain.errors",
    "RetryAfter": "domain.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"taskorch.{_PLACES[name]}"), name)
