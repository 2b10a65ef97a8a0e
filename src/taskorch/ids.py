"""Task ids: making one, and recognising one or the beginning of one."""

import os
import re

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]  # ten bits each
FULL_ID = re.compile(r"t[0-9a-hjkmnp-tv-z]{16}")
PREFIX = re.compile(r"t[0-9a-hjkmnp-tv-z]{5,15}")

URI = re.compile(r"task://([^/]*)(?:/output)?")
WRAPPED = " \t\r\n'\"`<>[]()#"  # what people and models put around an id


def undressed(reference: str) -> str:
    """An id or a name without what was put around it: spaces, quotes, brackets, task://, the end of a sentence.

    Letters of an id may be written large: its alphabet has only one case.
    """
    bare = reference.strip(WRAPPED)
    if match := URI.fullmatch(bare):
        bare = match[1]
    short = bare.rstrip(".,;:…").lower()
    return short if FULL_ID.fullmatch(short) or (PREFIX.fullmatch(short) and bare.endswith(("…", "..."))) else bare


def new_id() -> str:
    """`t` and 16 characters of Crockford base32: 80 random bits."""
    bits = int.from_bytes(os.urandom(10))
    return "t" + "".join([_PAIRS[bits >> shift & 1023] for shift in range(70, -1, -10)])
