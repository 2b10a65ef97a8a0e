"""The programs of `python -m tests.peers` keep running, and a peer that fails is never reported as passed.

The peers themselves are installed from PyPI and npm, so only the one that needs no installation runs here.
"""

from pathlib import Path

import pytest
from peers.__main__ import HERE, judged, main, ran
from peers.pins import LEGACY, MODERN, PEERS


def test_the_sdk_goes_through_the_whole_loop_on_the_installed_command(tmp_path: Path) -> None:
    found = ran(PEERS[0], "legacy", tmp_path)
    assert found.wrong == ""
    assert (found.era, found.shown[0], found.shown[-1]) == (LEGACY, "tools", "prompts")


@pytest.mark.parametrize(
    ("said", "code", "wrong"),
    [
        (f"era {MODERN}\nok tools\nTraceback: boom\n", 1, "boom"),
        (f"era {MODERN}\nok tools\n", 0, "exit code 0"),
        (f"era {MODERN}\nok tools\n", None, "took more than"),
        (f"era {LEGACY}\nok tools\nend\n", 0, f"negotiated {LEGACY} instead of {MODERN}"),
        ("ok tools\nend\n", 0, "negotiated -"),
    ],
    ids=["it failed", "it stopped half-way", "it hung", "another era", "no era"],
)
def test_a_peer_that_did_not_get_through_has_failed(said: str, code: int | None, wrong: str) -> None:
    assert wrong in judged(said, code, MODERN).wrong


def test_a_failure_is_shown_and_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")  # so there is no npm
    monkeypatch.setattr("sys.argv", ["peers", "typescript-1", "--cache", str(tmp_path)])
    assert main() == 1
    shown = capsys.readouterr()
    assert "| typescript-1 | @modelcontextprotocol/sdk@" in shown.out and "| FAILED |" in shown.out
    assert "typescript-1 (legacy): there is no npm" in shown.err


def test_every_peer_has_its_program_and_every_program_its_peer() -> None:
    assert {peer.program for peer in PEERS} == {path.name for path in HERE.glob("with_*")}


def test_every_version_is_pinned() -> None:
    for peer in PEERS:
        for package in peer.packages:
            assert "==" in package or "@" in package[1:], package
