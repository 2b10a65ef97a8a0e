"""Durable background tasks for MCP clients."""

from taskorch.domain.errors import NonRetryable, RetryAfter
from taskorch.work.handlers import Context, handler

__all__ = ["Context", "NonRetryable", "RetryAfter", "__version__", "handler"]
__version__ = "0.1.0"
