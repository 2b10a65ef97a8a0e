"""What is handed out: wheel, sdist, MCPB bundle and registry entry hold what they should, agree, and start a server.

What needs PyPI or npm is slow: `pytest -m slow tests/test_packages.py`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp_types import CallToolResult
from peers.environments import Unavailable, npm, venv
from platformdirs import user_cache_path

from packages import __main__ as packages
from taskorch import __version__
from taskorch.cli import hosts
from taskorch.config import PREFIX, Settings, variables
from taskorch.mcp.tools import TOOLS

ROOT = packages.ROOT
SOURCE = ROOT / "src" / "taskorch"
CACHE = user_cache_path("taskorch") / "peers"
UV = "uv==0.13.9"
CORE = [name for name, tool in TOOLS.items() if tool.toolset == "core"]
WITH_BOARD = [*CORE, "show_board", "board_data"]
SECONDS = 120  # installing, at first
NEVER = re.compile(r"__pycache__|\.pyc$|\.venv|\.(pytest|ruff)_cache|\.hypothesis|egg-info|node_modules|^dist/|\.db")
MADE = ("__pycache__/x.cpython-311.pyc", ".pytest_cache/README.md", ".venv/bin/python", "y.pyc", "node_modules/z.js")
MANIFEST = json.loads((ROOT / packages.MANIFEST).read_text())
ENTRY = json.loads((ROOT / "packages" / "server.json").read_text())
(PACKAGE,) = ENTRY["packages"]

RESOLVE = """
import {getMcpConfigForManifest} from "@anthropic-ai/mcpb";
const [extensionPath, manifest, userConfig] = process.argv.slice(1);
console.log(JSON.stringify(await getMcpConfigForManifest({
  extensionPath, manifest: JSON.parse(manifest), userConfig: JSON.parse(userConfig),
  systemDirs: {HOME: process.env.HOME}, pathSeparator: "/"})));
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This one as it looks after some work: with caches everywhere."""
    copy = tmp_path_factory.mktemp("packages") / "project"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "dist"))
    for folder in (copy, copy / "src" / "taskorch", copy / "tests", copy / "docs"):
        for name in MADE:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("made")
    (copy / "dist").mkdir()
    (copy / "dist" / "old.whl").write_text("made")
    return copy


@pytest.fixture(scope="module")
def built_wheel(project: Path) -> Path:
    return packages.wheel(project, project.parent)


@pytest.fixture(scope="module")
def built_sdist(project: Path) -> Path:
    return packages.sdist(project, project.parent)


@pytest.fixture(scope="module")
def metadata(built_wheel: Path) -> Message:
    with zipfile.ZipFile(built_wheel) as opened:
        return Parser().parsestr(opened.read(f"taskorch-{__version__}.dist-info/METADATA").decode())


def contents(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as opened:
        return {name: opened.read(name) for name in opened.namelist() if not name.endswith("/")}


def of_source() -> set[str]:
    """All that the package is made of."""
    files = {str(path.relative_to(SOURCE.parent)) for path in SOURCE.rglob("*") if path.is_file()}
    return {name for name in files if not NEVER.search(name)}


# Wheel and sdist.


def test_the_wheel_holds_the_whole_package_and_nothing_else(built_wheel: Path) -> None:
    names = set(contents(built_wheel))
    data = {"py.typed", "storage/schema.sql", "work/shim.py"}
    assert {f"taskorch/{name}" for name in data} <= of_source()
    assert {name for name in names if name.startswith("taskorch/")} == of_source()
    assert {name.partition("/")[0] for name in names} == {"taskorch", f"taskorch-{__version__}.dist-info"}


def test_the_sdist_is_the_whole_project_without_what_was_made_from_it(built_sdist: Path) -> None:
    with tarfile.open(built_sdist) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert [name for name in names if NEVER.search(name)] == []
    tops = {name.partition("/")[0] for name in names} - {"PKG-INFO", ".gitignore"}
    documents = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"}
    code = {"src", "tests", "benchmarks", "reliability", "packages", ".ci"}
    assert tops == documents | code | {"docs", "examples", "mcp.json", "pyproject.toml"}
    assert {"src/" + name for name in of_source()} <= names
    for top in ("tests", "docs", "examples"):
        there = {str(path.relative_to(ROOT)) for path in (ROOT / top).rglob("*") if path.is_file()}
        assert {name for name in there if not NEVER.search(name)} <= names


def test_a_wheel_built_from_the_sdist_is_the_wheel(built_sdist: Path, built_wheel: Path, tmp_path: Path) -> None:
    """So that whoever packages taskorch needs the sdist alone."""
    with tarfile.open(built_sdist) as opened:
        opened.extractall(tmp_path, filter="data")
    again = packages.wheel(tmp_path / f"taskorch-{__version__}", tmp_path / "again")
    assert contents(again) == contents(built_wheel)


def test_an_index_is_told_what_it_shows(metadata: Message) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (metadata["Name"], metadata["Version"]) == ("taskorch", __version__)
    assert metadata["Summary"] == project["description"]
    assert (metadata["License-Expression"], metadata["License-File"]) == ("MIT", "LICENSE")
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text()
    assert set(metadata.get_all("Classifier", [])) == set(project["classifiers"])
    assert "Typing :: Typed" in project["classifiers"]


def test_the_command_is_named_like_the_package(built_wheel: Path) -> None:
    """`uvx taskorch` and `pipx run taskorch` look for that name."""
    entries = contents(built_wheel)[f"taskorch-{__version__}.dist-info/entry_points.txt"].decode()
    assert "[console_scripts]\ntaskorch = taskorch.cli.start:main" in entries


# One version, one name, true settings.


def test_there_is_one_version() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest
    told = [newest[1], MANIFEST["version"], ENTRY["version"], PACKAGE["version"]]
    assert told == [__version__] * 4


def test_the_bundle_offers_the_tools_and_no_others() -> None:
    assert sorted(tool["name"] for tool in MANIFEST["tools"]) == sorted([*CORE, "show_board"])
    assert all(tool["description"] for tool in MANIFEST["tools"])


def test_what_a_person_fills_in_becomes_settings() -> None:
    handed_on = {PREFIX + name.upper(): f"${{user_config.{name}}}" for name in MANIFEST["user_config"]}
    assert MANIFEST["server"]["mcp_config"]["env"] == handed_on | {"TASKORCH_TOOLSETS": "core,board"}
    assert handed_on.keys() <= variables()
    assert all(field["title"] and field["description"] for field in MANIFEST["user_config"].values())


def test_a_form_that_is_left_as_it_is_allows_nothing_and_keeps_tasks_in_the_usual_place() -> None:
    """Every field has a default, since hosts hand on the placeholder of one that has none."""
    given = {name: field["default"] for name, field in MANIFEST["user_config"].items()}
    settings = Settings.model_validate({name: value for name, value in given.items() if value != ""})
    assert settings == Settings(concurrency=given["concurrency"])
    bounds = Settings.model_json_schema()["properties"]["concurrency"]
    field = MANIFEST["user_config"]["concurrency"]
    assert (field["min"], field["max"]) == (bounds["minimum"], bounds["maximum"])


def test_the_bundle_holds_a_project_and_no_cache(project: Path, tmp_path: Path) -> None:
    packages.stage(project, tmp_path / "bundle")
    staged = {str(path.relative_to(tmp_path / "bundle")) for path in tmp_path.rglob("*") if path.is_file()}
    assert staged == {"manifest.json", "pyproject.toml", "README.md", "LICENSE", *("src/" + one for one in of_source())}
    assert MANIFEST["server"]["entry_point"] in staged
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert MANIFEST["compatibility"] == {"platforms": ["darwin", "linux"], "runtimes": {"python": python}}


def test_the_registry_entry_is_one_that_the_registry_takes() -> None:
    """The rules of its schema for what stands in ours."""
    assert ENTRY.keys() == {"$schema", "name", "title", "description", "version", "packages"}
    assert re.fullmatch(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+", ENTRY["name"])
    assert 1 <= len(ENTRY["description"]) <= 100 and 1 <= len(ENTRY["title"]) <= 100
    assert (PACKAGE["registryType"], PACKAGE["identifier"]) == ("pypi", "taskorch")
    assert PACKAGE["runtimeHint"] == "uvx" and PACKAGE["transport"] == {"type": "stdio"}
    for variable in PACKAGE["environmentVariables"]:
        assert variable["name"] in variables()
        assert variable.keys() <= {"name", "description", "format", "placeholder"}
        assert variable.get("format", "string") in ("string", "number", "boolean", "filepath")


def test_the_readme_claims_the_name_of_the_registry_entry() -> None:
    """The registry looks for it in the README that PyPI shows."""
    assert f"<!-- mcp-name: {ENTRY['name']} -->" in (ROOT / "README.md").read_text()


def test_the_document_of_hosts_says_where_each_is_set_up() -> None:
    lines = (ROOT / "docs/how-to/hosts.md").read_text().splitlines()
    for host in hosts.hosts():
        (row,) = [line for line in lines if line.startswith(f"| {host.title} |")]
        assert f"`taskorch install {host.name}`" in row
        assert host.user.name in row and (f"`{host.project}`" if host.project else "none for a project") in row


# Installed and started.


def clean(home: Path, *first_on_path: Path, **more: str) -> dict[str, str]:
    """The environment of a user who has none of this project."""
    ours = (PREFIX, "XDG_", "PYTHON", "VIRTUAL_ENV", "PYTEST")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = os.pathsep.join([*map(str, first_on_path), os.environ["PATH"]])
    return kept | {"HOME": str(home), "PATH": path} | more


def run(*command: str | Path, env: dict[str, str], cwd: Path) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, env=env, cwd=cwd, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, f"{words} ended with {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


async def use(server: StdioServerParameters, tools: list[str] = CORE) -> CallToolResult:
    """List the tools, which must be these, and have a command run, as a host would; what came of it."""
    with anyio.fail_after(SECONDS):
        async with Client(server) as client:
            assert client.server_info and client.server_info.version == __version__
            assert [tool.name for tool in (await client.list_tools()).tools] == tools
            arguments = {"payload": {"argv": ["echo", "hello"]}, "wait_seconds": 20}
            return await client.call_tool("create_task", arguments)


def completed(result: CallToolResult) -> bool:
    return bool(result.structured_content) and result.structured_content["status"] == "completed"


def installed(what: str, cache: Path) -> Path:
    """The folder that has a program's commands."""
    try:
        return npm(cache, what, oldest=20) / "node_modules" / ".bin" if "@" in what else venv(cache, what) / "bin"
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.mark.slow
async def test_the_wheel_runs_in_an_environment_of_its_own(built_wheel: Path, tmp_path: Path) -> None:
    made = tmp_path / "venv"
    env = clean(tmp_path, made / "bin")
    run(sys.executable, "-m", "venv", made, env=dict(os.environ), cwd=tmp_path)
    run(made / "bin" / "pip", "install", "-q", built_wheel, env=dict(os.environ), cwd=tmp_path)
    where = run(made / "bin" / "python", "-c", "import taskorch; print(taskorch.__file__)", env=env, cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(made)
    assert run(made / "bin" / "taskorch", "--version", env=env, cwd=tmp_path) == f"taskorch {__version__}\n"
    run(made / "bin" / "taskorch", "doctor", env=env, cwd=tmp_path)
    ((name, entry),) = json.loads((ROOT / "mcp.json").read_text())["mcpServers"].items()
    assert (name, entry["type"]) == ("taskorch", "stdio")
    host = {**env, **entry["env"], "TASKORCH_ALLOW_COMMANDS": "echo"}
    server = StdioServerParameters(command=entry["command"], args=entry["args"], env=host, cwd=tmp_path)
    assert completed(await use(server, WITH_BOARD))


@pytest.mark.slow
def test_uvx_runs_the_wheel(built_wheel: Path, tmp_path: Path) -> None:
    said = run("uvx", "--from", built_wheel, "taskorch", "--version", env=with_uv(tmp_path), cwd=tmp_path)
    assert said == f"taskorch {__version__}\n"


@pytest.mark.slow
async def test_the_bundle_is_valid_and_runs_with_what_was_filled_in(tmp_path: Path) -> None:
    """As a host does it, but for its forms: unpack, fill in by the bundle's own library, start by uv."""
    commands = installed(packages.MCPB, CACHE)
    packed = packages.bundle(ROOT, tmp_path, [str(commands / "mcpb")])
    unpacked, state = tmp_path / "unpacked", tmp_path / "chosen"
    with zipfile.ZipFile(packed) as opened:
        opened.extractall(unpacked)
    manifest = json.loads((unpacked / "manifest.json").read_text())
    env = with_uv(tmp_path)

    def filled_in(form: dict[str, Any], **more: str) -> StdioServerParameters:
        words = (str(unpacked), json.dumps(manifest), json.dumps(form))
        said = run("node", "--input-type=module", "-e", RESOLVE, *words, env=env, cwd=commands.parents[1])
        config = json.loads(said)
        given = {**env, **config["env"], **more}
        return StdioServerParameters(command=config["command"], args=config["args"], env=given, cwd=tmp_path)

    form = {"state_dir": str(state), "allow_commands": "echo", "allow_dirs": str(tmp_path), "concurrency": 2}
    assert completed(await use(filled_in(form), WITH_BOARD))
    assert (state / "taskorch.db").exists()
    refused = await use(filled_in({}, UV_OFFLINE="1"), WITH_BOARD)  # only the first start needs the network
    assert refused.is_error and "TASKORCH_ALLOW_COMMANDS" in str(refused.content)
    assert user_state(tmp_path).exists()


def with_uv(home: Path) -> dict[str, str]:
    """An environment with uv, on this Python, with a cache that stays."""
    uv = installed(UV, CACHE)
    return clean(home, uv, UV_CACHE_DIR=str(CACHE / "uv-cache"), UV_PYTHON=sys.executable)


def user_state(home: Path) -> Path:
    """The database where the platform keeps state."""
    folder = "Library/Application Support" if sys.platform == "darwin" else ".local/state"
    return home / folder / "taskorch" / "taskorch.db"
