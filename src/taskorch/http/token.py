"""The token that opens the server: made once, kept in a file of yours alone, or the operator's own."""

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from taskorch.config import TOKEN
from taskorch.domain.errors import StoreError

FILE = "http-token"
BYTES = 32  # of chance in one that we make
BEARER = "bearer "


class Token:
    """What requests are held against, in time that tells nothing.

    The cookie is made of the token and is not it: browsers send cookies to every port of a host, and a server on
    another one must not learn what opens this one from elsewhere, nor what is written in clients' configurations.
    """

    def __init__(self, value: str, port: int) -> None:
        self.value = value
        self._cookie = hmac.digest(value.encode(), b"taskorch cookie", hashlib.sha256).hex()
        self._name = f"taskorch-{port}"  # cookies know hosts, not ports

    def is_it(self, value: str) -> bool:
        return _same(value, self.value)

    def is_borne(self, authorization: str) -> bool:
        """Whether this value of the header `Authorization` has the token."""
        return authorization[: len(BEARER)].lower() == BEARER and self.is_it(authorization[len(BEARER) :].strip())

    def has_cookie(self, cookies: Sequence[str]) -> bool:
        """Whether one of the values of this header has our cookie."""
        pairs = [pair.strip().partition("=") for value in cookies for pair in value.split(";")]
        return any(_same(value, self._cookie) for name, _, value in pairs if name == self._name)

    @property
    def set_cookie(self) -> str:
        """Until the browser is closed, for requests of our own pages alone, and out of the reach of scripts."""
        return f"{self._name}={self._cookie}; Path=/; HttpOnly; SameSite=Strict"


def _same(given: str, right: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8", "surrogateescape"), right.encode())


def kept_token(state: Path) -> str:
    """The token in the state folder, made if there is none. Raises StoreError. Blocks."""
    path = state / FILE
    try:
        return _read(path)
    except FileNotFoundError:
        make(path)
        return _read(path)
    except OSError as error:
        text = (
            f"The token in {path} cannot be read: {error.strerror or error}. Remove it; the next start makes a new one."
        )
        raise StoreError(text) from error


def _read(path: Path) -> str:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise StoreError(
                f"{path} may have been read by others: it must be a plain file of yours with the rights 0600. "
                "Remove it; the next start makes a new one."
            )
        value = file.read(1024).decode("ascii", "replace").strip()
    if not TOKEN.fullmatch(value):
        raise StoreError(f"{path} holds no token. Remove it; the next start makes a new one.")
    return value


def make(path: Path) -> None:
    """Whole or not at all, and never over one that another server has made meanwhile."""
    draft = path.with_name(f"{FILE}.{secrets.token_hex(8)}")
    try:
        with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(draft, path)
    except OSError as error:
        raise StoreError(f"The token cannot be kept in {path}: {error.strerror or error}.") from error
    finally:
        draft.unlink(missing_ok=True)
