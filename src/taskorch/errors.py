"""What a caller may be told. Every message here is written to be shown to a model or a person."""


class TaskError(Exception):
    """Base of the errors whose text is safe to show: what was wrong, what is allowed, what to do next."""


class InvalidInput(TaskError):
    """An argument is outside what is allowed; nothing was stored."""


class NotFound(TaskError):
    """No task, attempt or resource bears that name."""


class Conflict(TaskError):
    """The task's present status (or version) does not allow the change; nothing was changed."""


class StoreError(TaskError):
    """The database could not be used: busy, full, unreadable, or written by a newer taskorch."""


class NonRetryable(Exception):
    """Raised by a handler: the attempt failed, and another one would fail too."""
