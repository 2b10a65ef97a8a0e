"""Documents as something to follow: the commands and calls that they show, and whether what came back is what they say.

A block of `console` holds commands after `$ `, each followed by what it prints. A block of `calls` holds tools' calls,
as one writes them in Python (or with JSON's words), each followed by the text of its reply, four spaces in. In both,
ids, times and durations stand for any others, `…` for the rest of a line, and a line that is just `…` for any lines.
A block of another language that begins with the comment `# NAME.EXT` is that file. Two comments are not shown:
`<!-- the host is closed -->` ends the session of the host in which calls are made, and `<!-- first: COMMAND -->` makes
what a reader has already.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"^( *)```(\w+)\n(.*?)^\1```$|^<!-- first: (.*?) -->$|^<!-- the host is closed -->$", re.DOTALL | re.MULTILINE
)
FILE = re.compile(r"# ([\w.-]+\.\w+)\n")
JSON_WORDS = {"true": True, "false": False, "null": None}
ANY = (  # what differs from run to run, and how it is written here
    (re.compile(r"\bt[0-9a-hjkmnp-tv-z]{16}\b"), "ID"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d)?"), "TIME"),
    (re.compile(r"\b\d+(?:\.\d+)? s\b"), "SPAN"),
)


@dataclass(frozen=True)
class Command:
    """A line for a shell."""

    line: str
    said: str | None  # None: that is not shown


@dataclass(frozen=True)
class Call:
    """A call of a tool."""

    tool: str
    arguments: dict[str, Any]
    said: str


@dataclass(frozen=True)
class File:
    """A file that the reader is asked to write."""

    name: str
    text: str


@dataclass(frozen=True)
class Closing:
    """The end of the host's session."""


Step = Command | Call | File | Closing


def steps(document: str) -> Iterator[Step]:
    """What a reader does who follows the document (a path below the project), in its order."""
    for indent, language, text, first in BLOCK.findall((ROOT / document).read_text("utf-8")):
        if not language:
            yield Command(first, None) if first else Closing()
            continue
        text = "\n".join(line.removeprefix(indent) for line in text.splitlines()) + "\n"
        if language == "console":
            yield from commands(text)
        elif language == "calls":
            yield from calls(text)
        elif named := FILE.match(text):
            yield File(named[1], text)


def commands(text: str) -> Iterator[Command]:
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        line, _, said = re.sub(r"\\\n", "", part).partition("\n")
        yield Command(line, said.rstrip("\n"))


def calls(text: str) -> Iterator[Call]:
    for part in re.split(r"^(?=[a-z_]+\()", text, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        end = next(count for count in range(1, len(lines) + 1) if _is_whole("\n".join(lines[:count])))
        call = ast.parse("\n".join(lines[:end]), mode="eval").body
        assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args
        arguments = {str(keyword.arg): _value(keyword.value) for keyword in call.keywords}
        yield Call(call.func.id, arguments, dedent("\n".join(lines[end:])).strip("\n"))


def same(said: str | None, came: str) -> bool:
    """Whether what came back is what the document says."""
    if said is None:
        return True
    lines = [
        r"(?:.*\n)*?" if line.strip() == "…" else re.escape(line).replace("…", ".*?") + r"\n"
        for line in _any(said).splitlines()
    ]
    return bool(re.fullmatch("".join(lines), _any(came)))


def _any(text: str) -> str:
    """What is the same in every run, each line with its end."""
    text = "".join(f"{line.rstrip()}\n" for line in text.rstrip().splitlines())
    for pattern, word in ANY:
        text = pattern.sub(word, text)
    return text


def _is_whole(text: str) -> bool:
    try:
        ast.parse(text, mode="eval")
    except SyntaxError:
        return False
    return True


def _value(node: ast.expr) -> Any:
    return ast.literal_eval(_Literals().visit(node))


class _Literals(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.Constant:
        return ast.Constant(JSON_WORDS[node.id])
