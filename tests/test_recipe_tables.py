"""What the operator may write in a recipe, what is refused at the start, and what a task may put in a slot."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from taskorch.config import Settings, config_file, load_settings, unknown_keys, unknown_variables, where_to_mend
from taskorch.domain.errors import InvalidInput, readable
from taskorch.domain.recipe import Recipe, hole

ANY = {"type": "string", "allow_dash": True}
CANARY = "canary-3f9c"


@pytest.fixture(autouse=True)
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The place of config.toml, in a folder of our own."""
    monkeypatch.delenv("TASKORCH_RECIPES", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    config_file().parent.mkdir(parents=True)
    return config_file()


def recipe(*argv: str | list[str], slots: dict[str, Any] | None = None, **more: Any) -> Recipe:
    return Recipe.model_validate({"argv": list(argv), "slots": slots or {}, **more})


def ran(made: Recipe, **payload: Any) -> list[str]:
    """What follows the program."""
    return made.arguments(made.values(payload))[1:]


def refused(made: Recipe, **payload: Any) -> str:
    with pytest.raises(InvalidInput) as error:
        made.values(payload)
    return str(error.value)


# What may be written.


def test_a_slot_becomes_one_whole_argument() -> None:
    made = recipe("git", "log", "{range}", "--", "{file}", slots={"range": ANY, "file": ANY})
    assert ran(made, range="main..dev; rm -rf /", file="$(id) `id` *\n\t'\"") == [
        *("log", "main..dev; rm -rf /", "--"),
        "$(id) `id` *\n\t'\"",
    ]


@given(
    first=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), second=st.text("{}ab")
)
def test_whatever_a_value_holds_it_is_one_argument_and_nothing_in_it_is_a_slot(first: str, second: str) -> None:
    made = recipe("x", "{a}", "-", "{b}", slots={"a": ANY, "b": ANY | {"optional": True}})
    assert ran(made, a=first, b=second or None) == [first, "-", *([second] if second else [])]
    assert ran(made, a="{b}", b="{a}") == ["{b}", "-", "{a}"]


def test_an_optional_slot_falls_away_with_the_list_that_it_stands_in() -> None:
    slots = {"depth": {"type": "integer", "optional": True}, "url": ANY | {"optional": True}}
    made = recipe("git", "clone", ["--depth", "{depth}"], "{url}", "end", slots=slots)
    assert ran(made) == ["clone", "end"]
    assert ran(made, depth=None, url=None) == ["clone", "end"], "null is no value"
    assert ran(made, depth=3) == ["clone", "--depth", "3", "end"]
    assert ran(made, depth=3, url="u") == ["clone", "--depth", "3", "u", "end"]


def test_a_list_with_two_slots_falls_away_when_one_has_no_value() -> None:
    slots = {"a": ANY | {"optional": True}, "b": ANY}
    made = recipe("x", ["{a}", "to", "{b}"], slots=slots)
    assert (ran(made, b="2"), ran(made, a="1", b="2")) == ([], ["1", "to", "2"])


def test_a_default_stands_where_nothing_is_given() -> None:
    made = recipe(
        "x", "{n}", "{on}", slots={"n": {"type": "integer", "default": 7}, "on": {"type": "boolean", "default": False}}
    )
    assert ran(made) == ["7", "false"]
    assert ran(made, n=8, on=True) == ["8", "true"]


def test_a_flag_is_the_operators_argument_or_none() -> None:
    made = recipe("x", "{force}", ["--why", "{force}"], slots={"force": {"type": "boolean", "flag": "--force"}})
    assert (ran(made), ran(made, force=False), ran(made, force=True)) == ([], [], ["--force", "--why", "--force"])


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("integer", 5, "5"),
        ("integer", "12", "12"),
        ("integer", 3.0, "3"),
        ("number", 3, "3"),
        ("number", 0.1, "0.1"),
        ("number", 1e300, "1e+300"),
        ("number", -0.0, "0"),
        ("boolean", "yes", "true"),
        ("path", "/a b/../c", "/a b/../c"),
        ("string", "-" * 3, "---"),
    ],
)
def test_each_type_is_written_in_one_way(kind: str, value: Any, text: str) -> None:
    dash = {"allow_dash": True} if kind in ("integer", "number", "string") else {}
    assert ran(recipe("x", "{a}", slots={"a": {"type": kind} | dash}), a=value) == [text]


def test_a_word_in_braces_can_be_meant_as_it_is() -> None:
    made = recipe("x", "{{word}}", "HEAD@{{upstream}}", "{print $1}", "stash@{0}", "{{.Names}}", "{}", "{{{a}}}")
    assert ran(made) == ["{word}", "HEAD@{upstream}", "{print $1}", "stash@{0}", "{{.Names}}", "{}", "{{a}}"]


def test_variables_folder_and_input_are_slots_too() -> None:
    slots = {"a": ANY, "dir": {"type": "path"}, "b": ANY | {"optional": True}}
    made = recipe("x", slots=slots, env={"A": "{a}", "B": "{b}", "C": "c"}, cwd="{dir}", stdin="{a}")
    values = made.values({"a": "-v", "dir": "/d"})
    assert made.variables(values) == {"A": "-v", "C": "c"}
    assert (hole(made.cwd or ""), values["dir"], hole(made.stdin or "")) == ("dir", "/d", "a")


# What a task may put in a slot.


def typed(**slot: Any) -> Recipe:
    return recipe("x", "{a}", slots={"a": slot})


BRANCH = {"type": "string", "pattern": "[a-z/]+", "max_length": 10}


@pytest.mark.parametrize(
    ("slot", "value", "said"),
    [
        (BRANCH, "main; rm -rf", "'main; rm -rf' is not allowed; it must have at most 10 characters"),
        (BRANCH, "a;b", "'a;b' is not allowed; it must match ^(?:[a-z/]+)$"),
        (BRANCH, "main\n", r"'main\n' is not allowed; it must match"),
        (BRANCH, "", "'' is not allowed; it must have 1 or more characters"),
        (BRANCH, {"a": 1}, "{'a': 1} is not allowed; it must be a string"),
        (BRANCH, ["main"], "['main'] is not allowed; it must be a string"),
        (BRANCH, 5, "5 is not allowed; it must be a string"),
        (
            {"type": "string"},
            "--upload-pack=id",
            "'--upload-pack=id' begins with '-', which programs read as an option",
        ),
        ({"type": "string"}, "-", "'-' begins with '-'"),
        ({"type": "string"}, "a\0b", r"holds the character '\x00', which no program can be given"),
        ({"type": "string"}, "a\ud800", r"a string"),
        ({"type": "string", "pattern": "a|b"}, "ab", "it must match ^(?:a|b)$"),
        ({"type": "string", "choices": ["unit", "all"]}, "al", "use 'unit' or 'all'. Did you mean 'all'?"),
        ({"type": "string", "choices": ["unit", "all"]}, "unit ", "use 'unit' or 'all'"),
        ({"type": "integer", "choices": [1, 2]}, 3, "3 is not allowed; use 1 or 2"),
        ({"type": "integer", "choices": [1, 2]}, True, "True is not allowed; it must be a number"),
        ({"type": "integer", "minimum": 1, "maximum": 50}, 0, "0 is not allowed; it must be at least 1"),
        ({"type": "integer", "minimum": 1, "maximum": 50}, 51, "51 is not allowed; it must be at most 50"),
        ({"type": "integer"}, 1.5, "1.5 is not allowed; it must be a whole number"),
        ({"type": "integer"}, True, "True is not allowed; it must be a number"),
        ({"type": "integer"}, "3; id", "'3; id' is not allowed; it must be a whole number"),
        ({"type": "integer"}, -1, "-1 is not allowed; it must be at least 0"),
        ({"type": "integer", "maximum": 0}, 1, "it must be at most 0"),
        ({"type": "integer"}, 10**4000, "it must be at most"),
        ({"type": "number"}, -0.5, "-0.5 is not allowed; it must be at least 0"),
        ({"type": "number"}, float("inf"), "inf is not allowed; it must be a finite number"),
        ({"type": "boolean"}, "perhaps", "'perhaps' is not allowed; it must be true or false"),
        ({"type": "path"}, "etc/passwd", "'etc/passwd' is relative; use an absolute path"),
        ({"type": "path"}, "~/x", "'~/x' is relative"),
        ({"type": "path"}, "/" * 5000, "it must have at most 4096 characters"),
        ({"type": "path", "choices": ["/a"]}, "/b", "'/b' is not allowed; use '/a'"),
    ],
)
def test_what_a_slot_does_not_take_is_refused_by_its_name_with_what_it_takes(
    slot: dict[str, Any], value: Any, said: str
) -> None:
    text = refused(typed(**slot), a=value)
    assert text.startswith("payload.a ") and said in text
    assert re.search(r" This recipe takes a: .+\.$", text)
    assert len(text) < 500, "a long value is cut"


def test_what_is_missing_or_unknown_is_named_with_all_that_the_recipe_takes() -> None:
    slots = {
        "branch": BRANCH,
        "depth": {"type": "integer", "minimum": 1, "optional": True},
        "suite": {"type": "string", "choices": ["unit", "all"], "default": "unit"},
    }
    text = refused(recipe("x", "{branch}", "{depth}", "{suite}", slots=slots), brnch="main")
    assert text == (
        "payload.branch is required; add it. Unknown argument 'payload.brnch'. Did you mean 'branch'? "
        "Allowed: branch, depth, suite. This recipe takes branch: a string, at most 10 characters, matching "
        "^(?:[a-z/]+)$; depth?: a whole number, at least 1; suite?: 'unit' or 'all' (default 'unit')."
    )
    assert refused(recipe("x"), a=1) == "Unknown argument 'payload.a'. This recipe has no slots: leave payload out."
    assert refused(typed(type="string"), a=None).startswith("payload.a is required")


@pytest.mark.parametrize("name", ["model_config", "copy", "schema", "json", "slot_a", "a", "class"])
def test_a_slot_may_have_any_name(name: str) -> None:
    made = recipe("x", f"{{{name}}}", slots={name: {"type": "string"}})
    assert ran(made, **{name: "v"}) == ["v"]
    assert "Unknown argument" in refused(made, **{name: "v", f"slot_{name}": "w"})


def test_only_what_stands_in_argv_may_not_begin_with_a_dash() -> None:
    slots = {"a": {"type": "string"}, "n": {"type": "integer"}}
    made = recipe("x", stdin="{a}", env={"N": "{n}"}, slots=slots)
    assert made.values({"a": "--help", "n": -3}) == {"a": "--help", "n": "-3"}
    assert "begins with '-'" in refused(
        recipe("x", ["-m", "{a}"], stdin="{a}", slots={"a": {"type": "string"}}), a="-F"
    )


def test_a_choice_of_the_operators_may_begin_with_a_dash() -> None:
    assert ran(typed(type="string", choices=["-q", "-v"]), a="-v") == ["-v"]


def test_the_schema_tells_what_a_payload_is_checked_against() -> None:
    slots = {
        "branch": BRANCH | {"description": "which one"},
        "depth": {"type": "integer", "maximum": 50, "optional": True},
        "force": {"type": "boolean", "flag": "--force"},
        "ratio": {"type": "number", "minimum": -1, "allow_dash": True, "default": 0.5},
        "suite": {"type": "string", "choices": ["unit", "all"], "default": "unit"},
        "token": {"type": "string", "default": CANARY},
        "where": {"type": "path"},
    }
    argv = ["{branch}", "{depth}", "{force}", "{ratio}", "{suite}", "{where}"]
    made = recipe("x", *argv, slots=slots, env={"TOKEN": "{token}"})
    dashless = {"not": {"pattern": "^-"}}
    size = {"minLength": 1, "maxLength": 10}
    assert made.payload_schema() == {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "branch": {"type": "string", "pattern": "^(?:[a-z/]+)$", "description": "which one"} | size | dashless,
            "depth": {"type": "integer", "minimum": 0, "maximum": 50},
            "force": {"type": "boolean", "default": False},
            "ratio": {"type": "number", "minimum": -1, "default": 0.5},
            "suite": {"type": "string", "enum": ["unit", "all"], "default": "unit"},
            "token": {"type": "string", "minLength": 1},
            "where": {"type": "string", "pattern": "^/", "minLength": 1, "maxLength": 4096},
        },
        "required": ["branch", "where"],
    }
    assert made.values({"branch": "main", "where": "/x"})["token"] == CANARY, "its default is there, and not shown"


def test_no_error_shows_what_is_to_become_a_variables_value() -> None:
    slots = {"token": {"type": "string", "max_length": 5}, "level": {"type": "integer", "default": 90210}}
    made = recipe("x", slots=slots, env={"TOKEN": "{token}", "LEVEL": "{level}"})
    for value in (CANARY, [CANARY], {CANARY: 1}, f"{CANARY}\0"):
        text = refused(made, token=value, level=CANARY)
        assert "payload.token is not allowed; it must be a string, at most 5 characters." in text
        assert "level?: a whole number (has a default)" in text
        assert CANARY not in text and "90210" not in text
    assert "payload.token is '(hidden)', as replies show it; give its value." in refused(made, token="(hidden)")


# What is refused when the server starts.

SLOT = '[recipes.r.slots]\na = { type = "string" }\n'


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("", "recipes.r.argv is required; add it."),
        ("argv = []", "recipes.r.argv [] is not allowed; it must have 1 or more items."),
        ('argv = "git pull"', "recipes.r.argv 'git pull' is not allowed; it must be an array."),
        ('argv = ["git", 3]', "recipes.r.argv.1 3 is not allowed; it must be a string, or a list of strings"),
        ('argv = ["git", []]', "recipes.r.argv.1 [] is not allowed"),
        ('argv = ["git", ["-n", 3]]', "recipes.r.argv.1 ['-n', 3] is not allowed"),
        ('argv = ["git", "a\\u0000"]', r"recipes.r.argv.1 holds the character '\x00'"),
        ('argv = ["git", ["--force"]]', "recipes.r has a list without a slot in argv, ['--force']"),
        (f'argv = ["{{a}}"]\n{SLOT}', "recipes.r does not begin argv with a program"),
        (f'argv = [["x", "{{a}}"]]\n{SLOT}', "recipes.r does not begin argv with a program"),
        (
            f'argv = ["git", "--branch={{a}}"]\n{SLOT}',
            "recipes.r has {a} inside a longer text in argv '--branch={a}'; a slot is a whole item and never a part",
        ),
        ('argv = ["git", "--branch={x}"]', "recipes.r has {x} inside a longer text"),
        (f'argv = ["git", ["-c", "a.b={{a}}"]]\n{SLOT}', "recipes.r has {a} inside a longer text"),
        ('argv = ["git", "{x}"]', "recipes.r has {x} in argv, and no slot of that name"),
        ('argv = ["git", "{x-y}"]', "recipes.r has {x-y} in argv, and no slot of that name"),
        (f'argv = ["git"]\n{SLOT}', "recipes.r has the slot 'a' and no item {a} that it could fill."),
        ('argv = ["git"]\npatern = "x"', "recipes.r has the unknown key 'patern'. Its keys: argv, slots, cwd"),
        ('argv = ["git"]\ncwd = "here"', "recipes.r has the relative cwd 'here'; use an absolute path"),
        (f'argv = ["git"]\ncwd = "{{a}}"\n{SLOT}', "recipes.r has {a} as cwd, and its type is string; make it a path."),
        (f'argv = ["git"]\ncwd = "/x/{{a}}"\n{SLOT}', "recipes.r has {a} inside a longer text in cwd"),
        (f'argv = ["git"]\nstdin = "Do {{a}}."\n{SLOT}', "recipes.r has {a} inside a longer text in stdin"),
        ('argv = ["git"]\nenv = { A = "x{a}" }', "recipes.r has {a} inside a longer text in env A"),
        (f'argv = ["git"]\nenv = {{ A = ["{CANARY}"] }}', "recipes.r.env 'A' must be a string."),
        ('argv = ["git"]\nenv = { "A=B" = "c" }', "is no variable's name; use names without '='"),
        ('argv = ["git"]\nenv = "A=B"', "recipes.r.env must be an object of names and strings."),
        ('argv = ["git"]\ntimeout_seconds = 0', "recipes.r.timeout_seconds 0 is not allowed"),
        ('argv = ["git"]\nmax_attempts = 101', "recipes.r.max_attempts 101 is not allowed; it must be at most 100."),
        ('argv = ["git"]\nmax_attempts = true', "recipes.r.max_attempts True is not allowed"),
    ],
)
def test_a_recipe_that_is_wrong_is_refused_in_words(table: str, said: str, config: Path) -> None:
    config.write_text(f"[recipes.r]\n{table}\n")
    text = mistake()
    assert said in text and CANARY not in text and "\n" not in text


@pytest.mark.parametrize(
    ("slot", "said"),
    [
        ({}, "recipes.r.slots.a.type is required; add it."),
        ({"type": "strin"}, "recipes.r.slots.a.type 'strin' is not allowed; use 'string', 'integer'"),
        ({"type": "string", "patern": "x"}, "has the unknown key 'patern'. Did you mean 'pattern'?"),
        ({"type": "string", "allow_dashes": True}, "has the unknown key 'allow_dashes'. Did you mean 'allow_dash'?"),
        ({"type": "string", "pattern": "a(?=b)"}, "has a pattern 'a(?=b)' that is no regular expression: look-around"),
        ({"type": "string", "pattern": "a)|(?:b"}, "that is no regular expression: unopened group"),
        ({"type": "string", "pattern": "["}, "that is no regular expression"),
        ({"type": "integer", "pattern": "x"}, "has pattern, which is for string slots; its type is integer."),
        ({"type": "string", "minimum": 1}, "has minimum, which is for integer and number slots"),
        ({"type": "string", "flag": "-f"}, "has flag, which is for boolean slots"),
        ({"type": "string", "anywhere": True}, "has anywhere, which is for path slots"),
        ({"type": "string", "max_length": 0}, "recipes.r.slots.a.max_length 0 is not allowed; it must be at least 1."),
        ({"type": "string", "choices": []}, "recipes.r.slots.a.choices [] is not allowed"),
        ({"type": "string", "choices": [1]}, "has the choice 1, which is no string."),
        ({"type": "integer", "choices": [True]}, "has the choice True, which is no integer."),
        ({"type": "string", "choices": ["a"], "max_length": 3}, "has max_length beside choices"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "has a minimum of 5 above its maximum of 3."),
        ({"type": "integer", "minimum": 0.5}, "is an integer; 0.5 is no bound for it."),
        ({"type": "integer", "minimum": -1}, "has a slot 'a' that allows negative numbers, which begin with '-'"),
        ({"type": "number", "maximum": -1}, "has a slot 'a' that allows negative numbers"),
        ({"type": "string", "optional": True, "default": "x"}, "has a default, so it need not be optional"),
        ({"type": "string", "default": "-x"}, "a default that it does not accept: default '-x' begins with '-'"),
        ({"type": "string", "choices": ["a"], "default": "b"}, "a default that it does not accept: default 'b'"),
        ({"type": "integer", "default": "x"}, "default 'x' is not allowed; it must be a whole number."),
        ({"type": "path", "default": "x"}, "default 'x' is relative; use an absolute path."),
        ({"type": "string", "description": 3}, "recipes.r.slots.a.description 3 is not allowed"),
    ],
)
def test_a_slot_that_is_wrong_is_refused_in_words(slot: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        Settings(recipes={"r": {"argv": ["x", "{a}"], "slots": {"a": slot}}})  # pyright: ignore[reportArgumentType]
    text = readable(error.value)
    assert text.startswith("recipes.r") and said in text


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "a" * 65, "é"])
def test_names_are_words(name: str, config: Path) -> None:
    config.write_text(f'[recipes.{json.dumps(name)}]\nargv = ["x"]\n')
    said = "is no name for a recipe; use letters, digits, '.', '_' and '-', at most 64."
    assert mistake() == f"recipes.{name} {said}"
    config.write_text(f'[recipes.r]\nargv = ["x"]\n[recipes.r.slots.{json.dumps(name)}]\ntype = "path"\n')
    assert "is no name for a slot" in mistake()


def test_what_is_no_table_is_refused(config: Path) -> None:
    config.write_text("recipes = 3\n")
    assert mistake() == "recipes 3 is not allowed; it must be an object."
    config.write_text("[recipes]\nr = 3\n")
    assert mistake() == "recipes.r 3 is not allowed; it must be an object."
    config.write_text('[recipes.r]\nargv = ["x", "{a}"]\nslots = { a = "string" }\n')
    assert mistake() == "recipes.r.slots.a 'string' is not allowed; it must be an object."


def mistake() -> str:
    with pytest.raises(ValidationError) as error:
        load_settings()
    assert where_to_mend(error.value) == f"in {config_file()}"
    return readable(error.value)


# Where recipes come from.


def test_recipes_come_from_the_file_and_from_no_variable(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ('{"evil": {"argv": ["sh"]}}', "no JSON"):
        monkeypatch.setenv("TASKORCH_RECIPES", text)
        assert load_settings().recipes == {}
    config.write_text('[recipes.r]\nargv = ["x"]\n')
    assert load_settings().recipes.keys() == {"r"}
    assert unknown_variables(["TASKORCH_RECIPES", "TASKORCH_KEEP_DAYS"]) == ["TASKORCH_RECIPES"]


def test_a_misspelt_key_in_a_recipe_is_found(config: Path) -> None:
    config.write_text(
        'recipe = 1\n[recipes.r]\nargv = ["x", "{a}"]\ntimeout = 3\n[recipes.r.slots]\na = { type = "path", max = 3 }\n'
    )
    assert unknown_keys() == ["recipe", "recipes.r.slots.a.max", "recipes.r.timeout"]
    config.write_text('[recipes.r]\nargv = ["x", "{a}"]\n[recipes.r.slots]\na = { type = "path" }\n')
    assert unknown_keys() == []
    config.write_text("recipes = [3]\n")
    assert unknown_keys() == []


def test_a_setting_that_is_wrong_beside_a_recipe_may_be_mended_anywhere(config: Path) -> None:
    config.write_text("[recipes]\nr = 3\n")
    with pytest.raises(ValidationError) as error:
        load_settings(concurrency=0)
    assert where_to_mend(error.value).startswith("by flag, by TASKORCH_… or in ")
