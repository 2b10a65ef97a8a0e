"""Who follows a document step by step sees what it shows.

`PYTHONPATH=tests python tests/test_followed.py docs/reference/tools.md` prints what comes of each step.
"""

import json
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest
from documents import ROOT, Call, Closing, Command, File, Step, same, steps
from mcp import Client
from mcp.client.stdio import StdioServerParameters

SECONDS = 60.0
HOME = "/home/me"  # as documents write it
UNSAID = {"TASKORCH_ALLOW_COMMANDS": "echo,make,sh,sleep", "TASKORCH_TOOLSETS": "core,worker,board"}  # if none is
BIN = Path(os.path.abspath(sys.executable)).parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what programs print is that of Linux")
DOCUMENTS = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/**/*.md"))]
FOLLOWED = [name for name in DOCUMENTS if any(isinstance(step, Command | Call) for step in steps(name))]


class Reader:
    """Somebody with a home of their own, a checkout of the project in it as the working folder, and Claude Code."""

    def __init__(self, home: Path, stack: AsyncExitStack) -> None:
        self.home = home
        self.work = home / "taskorch"
        self.work.mkdir(parents=True)
        (self.work / ".venv").symlink_to(BIN.parent)
        (self.work / "examples").symlink_to(ROOT / "examples")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TASKORCH_", "XDG_"))}
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        self.environment = kept | {"HOME": str(home), "PATH": path, "COLUMNS": "120", "TERM": "dumb"}
        self._stack = stack
        self._entry: Any = None
        self._client: Client | None = None

    async def follow(self, step: Step) -> str:
        """What comes of a step."""
        match step:
            case File():
                (self.work / step.name).write_text(step.text.replace(HOME, str(self.home)))
                return ""
            case Closing():
                await self._stack.aclose()
                self._client = None
                return ""
            case Command():
                ran = await anyio.run_process(
                    ["sh", "-c", f"exec 2>&1; {step.line.replace(HOME, str(self.home))}"],
                    check=False,
                    cwd=self.work,
                    env=self.environment,
                )
                return self._seen(ran.stdout.decode())
            case Call():
                client = await self._host()
                arguments = json.loads(json.dumps(step.arguments).replace(HOME, str(self.home)))
                return self._seen((await client.call_tool(step.tool, arguments)).content[0].text)

    async def _host(self) -> Client:
        """A session of the host, a new one when what it is to start has changed."""
        file = self.home / ".claude.json"
        entry = json.loads(file.read_text())["mcpServers"]["taskorch"] if file.exists() else {}
        if self._client is None or entry != self._entry:
            await self._stack.aclose()
            server = StdioServerParameters(
                command=entry.get("command", str(BIN / "taskorch")),
                args=entry.get("args", []),
                env=self.environment | entry.get("env", UNSAID),
                cwd=self.work,
            )
            self._entry, self._client = entry, await self._stack.enter_async_context(Client(server))
        return self._client

    def _seen(self, text: str) -> str:
        """As the document writes it: its reader has not put taskorch where these tests may be run."""
        text = "".join(line for line in text.splitlines(keepends=True) if "where it may be cleared away" not in line)
        return text.replace(str(BIN), f"{HOME}/taskorch/.venv/bin").replace(str(self.home), HOME)


async def mistakes(document: str, folder: Path, told: bool = False) -> list[str]:
    """The steps of which something else comes than the document says; `told`: print what comes of each."""
    found: list[str] = []
    async with AsyncExitStack() as stack:
        someone = Reader(folder / "home", stack)
        for step in steps(document):
            came = await someone.follow(step)
            if isinstance(step, Command | Call) and not same(step.said, came):
                found.append(f"{step}\nWhat came:\n{came}")
            if told:
                print(f"{step}\n{came}")  # noqa: T201 - for who runs this file by hand
    return found


@pytest.mark.parametrize("document", FOLLOWED)
async def test_what_a_document_shows_is_what_comes(document: str, tmp_path: Path) -> None:
    with anyio.fail_after(SECONDS):
        wrong = await mistakes(document, tmp_path)
    assert not wrong, "\n".join(wrong)


async def _show(document: str) -> None:
    with TemporaryDirectory() as folder:
        for mistake in await mistakes(document, Path(folder), told=True):
            print(f"\nOtherwise: {mistake}")  # noqa: T201 - for who runs this file by hand


if __name__ == "__main__":
    anyio.run(_show, sys.argv[1])
