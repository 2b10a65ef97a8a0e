"""Task ids: making one, and recognising one or the beginning of one."""

import re
import secrets
from base64 import b32encode

_CROCKFORD = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", b"0123456789abcdefghjkmnpqrstvwxyz")
FULL_ID = re.compile(r"t[0-9a-hjkmnp-tv-z]{16}")
PREFIX = re.compile(r"t[0-9a-hjkmnp-tv-z]{5,15}")


def new_id() -> str:
    """`t` and 16 characters of Crockford base32: 80 random bits."""
    return "t" + b32encode(secrets.token_bytes(10)).translate(_CROCKFORD).decode()
