"""Task ids: making one, and recognising one or the beginning of one."""

import re
import secrets

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base32
FULL_ID = re.compile(r"t[0-9a-hjkmnp-tv-z]{16}")
PREFIX = re.compile(r"t[0-9a-hjkmnp-tv-z]{5,15}")


def new_id() -> str:
    """`t` and 16 characters of Crockford base32: 80 random bits."""
    bits = int.from_bytes(secrets.token_bytes(10))
    return "t" + "".join([ALPHABET[bits >> shift & 31] for shift in range(0, 80, 5)])
