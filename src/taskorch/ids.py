"""Task ids: making one, and recognising one or the beginning of one."""

import os
import re

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]  # ten bits each
FULL_ID = re.compile(r"t[0-9a-hjkmnp-tv-z]{16}")
PREFIX = re.compile(r"t[0-9a-hjkmnp-tv-z]{5,15}")


def new_id() -> str:
    """`t` and 16 characters of Crockford base32: 80 random bits."""
    bits = int.from_bytes(os.urandom(10))
    return "t" + "".join([_PAIRS[bits >> shift & 1023] for shift in range(70, -1, -10)])
