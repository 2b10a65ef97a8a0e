"""Task ids: making one, and recognising one or the beginning of one."""

import os
import re

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]  # ten bits each
FULL_ID = re.compile(r"t[0-9a-hjkmnp-tv-z]{16}")
PREFIX = re.compile(r"t[0-9a-hjkmnp-tv-z]{5,15}")

URI = re.compile(r"task://([^/]*)(?:/output)?")
WRAPPED = " \t\r\n'\"`<>[]()#"  # what people and models put around an id
ENDS = ".,;:…"


def undressed(reference: str) -> str:
    """An id or a name without what was put around it: spaces, quotes, brackets, task://, the end of a sentence.

    Letters of an id may be written large: its alphabet has only one case.
    """
    short = _named(reference.strip(WRAPPED + ENDS)).lower()
    is_cut = reference.rstrip(WRAPPED).endswith(("…", "..."))
    if FULL_ID.fullmatch(short) or (is_cut and PREFIX.fullmatch(short)):
        return short
    return _named(reference.strip(WRAPPED))


def _named(uri: str) -> str:
    match = URI.fullmatch(uri)
    return match[1] if match else uri


def new_id() -> str:
    """`t` and 16 characters of Crockford base32: 80 random bits."""
    bits = int.from_bytes(os.urandom(10))
    return "t" + "".join([_PAIRS[bits >> shift & 1023] for shift in range(70, -1, -10)])
