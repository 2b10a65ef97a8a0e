"""A host that is gone leaves no server behind, even when somebody else holds the server's stdin."""

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

HOST = """
import subprocess, sys
subprocess.Popen([sys.executable, "-m", "taskorch", "--state-dir", sys.argv[1]], stderr=subprocess.DEVNULL)
sys.stdin.read(0)
import time; time.sleep(60)
"""
HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "0"}},
}


def comes(fd: int, seconds: float) -> bytes:
    """What can be read next; b'' at the end. Fails when nothing comes in time."""
    ready, _, _ = select.select([fd], [], [], seconds)
    assert ready, f"nothing within {seconds} s"
    return os.read(fd, 65_536)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is looked for once a second")
def test_a_server_leaves_when_its_host_is_killed_though_its_stdin_stays_open(tmp_path: Path) -> None:
    stdin, ours = os.pipe()
    answers, theirs = os.pipe()
    host = subprocess.Popen([sys.executable, "-c", HOST, tmp_path], stdin=stdin, stdout=theirs)
    os.close(stdin)
    os.close(theirs)
    try:
        os.write(ours, json.dumps(HELLO).encode() + b"\n")
        assert b'"serverInfo"' in comes(answers, 15)
        host.kill()
        host.wait()
        assert comes(answers, 5) == b""
    finally:
        host.kill()
        host.wait()
        os.close(ours)
        os.close(answers)
