"""What a server over stdio may be given, and what its client holds of it."""

import os
import socket

Ends = tuple[int, int, int, int]  # the server reads and writes, the client reads and writes


def pipes() -> Ends:
    (in_read, in_write), (out_read, out_write) = os.pipe(), os.pipe()
    return in_read, out_write, out_read, in_write


def sockets() -> Ends:
    """One of its own for each direction, as Node makes them."""
    (in_ours, in_theirs), (out_ours, out_theirs) = (tuple(s.detach() for s in socket.socketpair()) for _ in range(2))
    return in_ours, out_ours, out_theirs, in_theirs
