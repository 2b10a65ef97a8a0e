"""The house: who may import whom, how large a file may grow, and documents that are true."""

import ast
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from bounds import allowed

from taskorch.calls.policies import RetryWish
from taskorch.config import PREFIX, TABLES, TOOLSETS, Settings, variables
from taskorch.domain.recipe import Recipe
from taskorch.domain.rules import MOVES
from taskorch.domain.slot import Slot, Table
from taskorch.domain.task import Phase, Retry, Status
from taskorch.mcp.prompts import PROMPTS
from taskorch.mcp.resources import STATIC, TEMPLATES
from taskorch.mcp.tools import TOOLS

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "taskorch"
SETTINGS = "docs/reference/settings.md"
LINES = 320  # a file that outgrows this has found its seam

DOMAIN, STORAGE, TELEMETRY, WORK, CALLS, MCP, HTTP, CLI = FOLDERS = (
    *("domain", "storage", "telemetry", "work", "calls", "mcp", "http", "cli"),
)
TOP = {"__init__", "__main__", "app", "config", "engine", "leaving", "logs", "parent"}
PURE = {  # what the domain may use of others
    *("collections", "cronsim", "dataclasses", "datetime", "difflib", "enum", "functools", "itertools", "jmespath"),
    *("json", "math", "pydantic", "pydantic_core", "random", "re", "shlex", "typing", "zoneinfo"),
}
SDK = {"mcp", "mcp_types"}
WEB = {"starlette", "uvicorn", "sse_starlette"}
SDK_CLIENTS = {"work.program", "work.remote_session"}


@dataclass
class Imports:
    """What a module imports: modules of ours, and top-level names of others.

    `late`: those of ours that are not loaded with it, inside functions or for type checkers alone.
    """

    ours: set[str] = field(default_factory=set[str])
    others: set[str] = field(default_factory=set[str])
    late: set[str] = field(default_factory=set[str])

    @property
    def all_ours(self) -> set[str]:
        return self.ours | self.late


def imports(name: str) -> Imports:
    found = Imports()
    tree = ast.parse(file(name).read_text())
    late = {id(node) for above in ast.walk(tree) if is_later(above) for node in ast.walk(above)}
    for node in ast.walk(tree):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module
            whole = node.module in ("taskorch", *(f"taskorch.{folder}" for folder in FOLDERS))
            modules = [f"{node.module}.{alias.name}" for alias in node.names] if whole else [node.module]
        for module in modules:
            top, _, rest = module.partition(".")
            if top != "taskorch":
                found.others.add(top)
            else:
                target = found.late if id(node) in late else found.ours
                target.add(rest if file(rest).exists() else "__init__")
    return found


def is_later(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def file(name: str) -> Path:
    return SOURCE / f"{name.replace('.', '/')}.py"


def folder(name: str) -> str:
    return name.partition(".")[0] if "." in name else ""


def reach(name: str) -> set[str]:
    """Everything that importing a module imports, taskorch's own modules left out."""
    seen, todo, others = set[str](), {name}, set[str]()
    while todo:
        module = todo.pop()
        seen.add(module)
        others |= imports(module).others
        todo |= imports(module).ours - seen
    return others


ALL = sorted(str(path.relative_to(SOURCE).with_suffix("")).replace("/", ".") for path in SOURCE.rglob("*.py"))
MODULES = {name: imports(name) for name in ALL if not name.endswith(".__init__")}


def of(*folders: str) -> list[str]:
    return [name for name in MODULES if folder(name) in folders]


# Imports.


def test_every_module_has_its_place_in_the_house() -> None:
    assert set(of("")) == TOP
    assert {folder(name) for name in MODULES} == {"", *FOLDERS}


@pytest.mark.parametrize("name", of(DOMAIN))
def test_the_domain_knows_nothing_but_itself(name: str) -> None:
    assert {folder(found) for found in MODULES[name].all_ours} <= {DOMAIN}


@pytest.mark.parametrize("name", of(STORAGE))
def test_the_store_knows_nothing_of_those_who_use_it(name: str) -> None:
    assert {folder(found) for found in MODULES[name].all_ours} <= {DOMAIN, STORAGE}


@pytest.mark.parametrize("name", of(TELEMETRY))
def test_what_is_told_to_observers_knows_nothing_of_those_who_tell_it(name: str) -> None:
    assert {folder(found) for found in MODULES[name].all_ours} <= {DOMAIN, TELEMETRY}


def test_opentelemetry_is_known_in_one_place_which_loads_it_only_where_somebody_records() -> None:
    knowing = {name for name in MODULES if "opentelemetry" in MODULES[name].others}
    assert {folder(name) for name in knowing} == {TELEMETRY}
    for name in knowing:
        top = ast.parse(file(name).read_text()).body
        loaded = [node for node in top if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not [node for node in loaded if "opentelemetry" in ast.unparse(node)]


@pytest.mark.parametrize("name", of(DOMAIN, STORAGE, WORK))
def test_the_running_side_knows_nothing_of_those_who_call(name: str) -> None:
    assert {folder(found) for found in MODULES[name].all_ours} <= {DOMAIN, STORAGE, TELEMETRY, WORK}


def test_the_running_side_uses_the_sdk_only_as_a_client_of_other_servers_and_loads_it_only_then() -> None:
    """Tasks may call tools of other servers, and speaking the protocol is the SDK's work there too."""
    running = of(DOMAIN, STORAGE, WORK)
    assert {name for name in running if MODULES[name].others & SDK} == SDK_CLIENTS
    assert {name for name in MODULES if MODULES[name].ours & SDK_CLIENTS} <= SDK_CLIENTS
    assert {name for name in MODULES if MODULES[name].late & SDK_CLIENTS} == {"work.connections", "work.remote"}
    assert not reach("work.remote") & SDK


@pytest.mark.parametrize("name", of(CALLS))
def test_what_a_call_means_does_not_depend_on_who_makes_it(name: str) -> None:
    assert {folder(one) for one in MODULES[name].all_ours} <= {DOMAIN, STORAGE, TELEMETRY, WORK, CALLS}
    assert not MODULES[name].others & SDK


@pytest.mark.parametrize("name", of(CALLS, MCP))
def test_a_call_starts_no_work(name: str) -> None:
    """It has it done through the store; of the running side it reads the output files alone."""
    found = MODULES[name].all_ours
    assert {folder(one) for one in found} <= {DOMAIN, STORAGE, TELEMETRY, WORK, CALLS, MCP}
    assert {one for one in found if folder(one) == WORK} <= {"work.output"}


@pytest.mark.parametrize("name", of(HTTP))
def test_what_is_served_over_http_are_calls(name: str) -> None:
    """Of the store it knows types and what has changed; MCP is handed to it by `app`."""
    assert {folder(one) for one in MODULES[name].all_ours} <= {"", DOMAIN, STORAGE, CALLS, HTTP}
    assert {one for one in MODULES[name].all_ours if not folder(one)} <= {"config"}
    assert not MODULES[name].others & SDK


@pytest.mark.parametrize("name", [name for name in of(CLI) if name != "cli.demo"])
def test_the_command_line_works_without_the_mcp_side(name: str) -> None:
    """All but the demo, which is a client of a server."""
    assert not {MCP, HTTP} & {folder(one) for one in MODULES[name].all_ours}
    assert not MODULES[name].others & (SDK | WEB)


def test_only_app_knows_both_sides() -> None:
    sides = {name: {folder(one) for one in found.all_ours} for name, found in MODULES.items() if folder(name) != MCP}
    assert [name for name, known in sides.items() if known >= {MCP, WORK}] == ["app"]


def test_http_is_loaded_only_where_it_is_served() -> None:
    assert {name for name in MODULES if MODULES[name].others & WEB} <= {*of(HTTP), "mcp.streaming"}
    within = {*of(HTTP), "mcp.streaming"}
    assert {name for name in MODULES if MODULES[name].ours & within} <= within
    assert {name for name in MODULES if MODULES[name].late & within} == {"app"}


def test_an_engine_runs_without_the_sdk() -> None:
    """So that tasks are run where no host is."""
    assert MCP not in {folder(found) for found in MODULES["engine"].all_ours}
    assert not reach("engine") & SDK


def test_the_command_line_starts_without_the_sdk() -> None:
    assert MODULES["cli.start"].late == {"cli.main", "cli.serving"}
    assert MODULES["cli.serving"].late == {"app"}
    speaking = {name for name, found in MODULES.items() if found.all_ours & {"app", "cli.demo"}}
    assert speaking == {"cli.main", "cli.serving", "cli.http"}
    assert MODULES["cli.http"].late == {"app"}
    assert "cli.demo" in MODULES["cli.main"].late
    assert not reach("cli.serving") & {*SDK, "typer"}
    assert not reach("cli.main") & SDK


def test_the_shim_needs_nothing_but_python() -> None:
    assert not MODULES["work.shim"].all_ours
    assert MODULES["work.shim"].others <= set(sys.stdlib_module_names)
    assert not [name for name, found in MODULES.items() if "work.shim" in found.all_ours]


@pytest.mark.parametrize("name", of(DOMAIN))
def test_the_domain_is_pure(name: str) -> None:
    """No clock, no files, no network, no chance that is not an argument, no await."""
    assert MODULES[name].others <= PURE
    source = file(name).read_text()
    nodes = list(ast.walk(ast.parse(source)))
    assert not [node for node in nodes if isinstance(node, ast.Await | ast.AsyncFunctionDef)]
    assert not [node for node in nodes if isinstance(node, ast.Name) and node.id in ("open", "print", "input")]
    assert not re.search(r"Random\(\)|random\.|\bnow\(|today\(", source)


# Sizes.


@pytest.mark.parametrize("name", [name for name in ALL if name != "work.shim"])
def test_a_file_fits_in_the_head(name: str) -> None:
    assert len(file(name).read_text().splitlines()) <= LINES


# Documents.


def rows(document: str) -> list[list[str]]:
    """The cells of all table rows of a document."""
    lines = (ROOT / document).read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_the_table_of_modules_has_each_module_where_it_lies_and_no_other() -> None:
    told: list[str] = []
    place = ""
    for first, *_ in rows("CONTRIBUTING.md"):
        if heading := re.fullmatch(r"\*\*(?:`([a-z]+)/`|.*)\*\*", first):
            place = f"{heading[1]}." if heading[1] else ""
        told += [place + name for name in re.findall(r"`([a-z_]+)\.py`", first)]
    assert sorted(told) == sorted(name for name in MODULES if not name.startswith("__"))


def test_the_readme_has_a_row_for_each_tool_and_no_other() -> None:
    named = [name for row in rows("README.md") for name in re.findall("`([a-z_]+)`", row[0])]
    assert sorted(named) == sorted(TOOLS)


def settings_in(document: str) -> dict[str, list[str]]:
    """The rows of settings, by their variables: default, in one document what is allowed, and meaning."""
    named = re.compile(f"`({PREFIX}[A-Z_]+)`")
    return {found[1]: row[1:] for row in rows(document) if len(row) > 2 and (found := named.fullmatch(row[0]))}


def test_the_document_of_settings_has_a_row_for_each_and_no_other() -> None:
    assert sorted(settings_in(SETTINGS)) == sorted(variables())
    tables = [found[1] for row in rows(SETTINGS) if (found := re.fullmatch(r"`\[([a-z]+)\.NAME\]`", row[0]))]
    assert sorted(tables) == sorted(TABLES)
    assert len(variables()) + len(tables) == len(Settings.model_fields)


def test_the_document_of_settings_tells_which_numbers_are_allowed() -> None:
    told = settings_in(SETTINGS)
    for name, schema in Settings.model_json_schema()["properties"].items():
        if schema.get("type") in ("integer", "number"):
            assert told[PREFIX + name.upper()][1] == allowed(schema).partition(", ")[2], name


@pytest.mark.parametrize("document", [SETTINGS, "README.md"])
def test_the_defaults_of_settings_are_told(document: str) -> None:
    told = settings_in(document)
    assert told
    for name, setting in Settings.model_fields.items():
        variable = PREFIX + name.upper()
        if variable in told and name not in ("state_dir", "concurrency"):  # they depend on the machine
            assert told[variable][0] == str(setting.default or "empty")


@pytest.mark.parametrize(("table", "keys"), [("argv", Recipe), ("type", Slot)])
def test_the_document_of_recipes_has_a_row_for_each_key_and_no_other(table: str, keys: type[Table]) -> None:
    """Its tables begin with `argv` and `type`, and one row may have two keys."""
    told = [re.findall("`([a-z_]+)`", row[0]) for row in rows("docs/how-to/recipes.md")]
    first = told.index([table])
    own = told[first : told.index([], first) if [] in told[first:] else None]
    assert sorted(name for names in own for name in names) == sorted(keys.model_fields)


def test_every_toolset_can_be_switched_on() -> None:
    assert {tool.toolset for tool in TOOLS.values()} == set(TOOLSETS)


def test_the_document_of_statuses_has_every_move_and_no_other() -> None:
    told = {
        row[0]: {word for word in re.split(r",\s*", row[1]) if word}
        for row in rows("docs/reference/statuses.md")
        if row[0] in list(Status)
    }
    assert told == {str(status): set(map(str, moves)) for status, moves in MOVES.items()}


def test_the_document_of_statuses_explains_every_phase() -> None:
    assert set(map(str, Phase)) <= {row[0] for row in rows("docs/reference/statuses.md")}


def test_the_document_of_retries_has_every_part_of_a_policy_with_its_default() -> None:
    told = {
        row[0].strip("`"): row[2] for row in rows("docs/how-to/retries.md") if len(row) == 4 and row[0].startswith("`")
    }
    assert told.keys() == RetryWish.model_fields.keys()
    numbers = {name: float(word) for name, word in told.items() if word.isdigit()}
    assert numbers == {name: getattr(Retry(), name) for name in ("first_delay_seconds", "factor", "max_delay_seconds")}


def test_the_document_of_resources_has_each_of_them_and_each_prompt_with_its_arguments() -> None:
    told = rows("docs/reference/resources.md")
    uris = [row[0].strip("`") for row in told if "://" in row[0]]
    assert uris == [uri for uri, *_ in (*STATIC, *TEMPLATES)]
    prompts = {row[0].strip("`"): re.findall("`([a-z_]+)`", row[1]) for row in told if row[0].strip("`") in PROMPTS}
    assert prompts == {name: [argument.name for argument in prompt.arguments] for name, prompt in PROMPTS.items()}
