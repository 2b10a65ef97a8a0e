"""Settings: where they come from, which one wins, and what is refused."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from taskorch.config import PREFIX, Settings, config_file, load_settings, unknown_keys, unknown_variables, variables
from taskorch.domain.errors import readable


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable, and a config folder of our own without a file in it."""
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def write_config(text: str) -> None:
    config_file().parent.mkdir(parents=True)
    config_file().write_text(text)


def test_a_flag_beats_a_variable_which_beats_config_toml_which_beats_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    default = Settings.model_fields["keep_days"].default
    assert load_settings().keep_days == default
    write_config("keep_days = 11\nkeep_failed_days = 21\ntimeout_seconds = 31\n")
    assert load_settings().keep_days == 11
    monkeypatch.setenv("TASKORCH_KEEP_DAYS", "12")
    monkeypatch.setenv("TASKORCH_KEEP_FAILED_DAYS", "22")
    settings = load_settings(keep_days=13, timeout_seconds=None)
    assert (settings.keep_days, settings.keep_failed_days, settings.timeout_seconds) == (13, 22, 31)


def test_the_config_file_lies_in_the_platforms_config_folder(tmp_path: Path) -> None:
    assert config_file() == tmp_path / "config" / "taskorch" / "config.toml"


def test_an_empty_variable_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    write_config("concurrency = 7\n")
    monkeypatch.setenv("TASKORCH_CONCURRENCY", "")
    assert load_settings().concurrency == 7


@pytest.mark.parametrize("given", ["~/state", "./state", "state"])
def test_the_state_folder_is_an_absolute_path_however_it_was_written(
    given: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TASKORCH_STATE_DIR", given)
    assert load_settings().state_dir == tmp_path / "state"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("concurrency", 0),
        ("concurrency", 257),
        ("allow_dirs", "/tmp,here"),
        ("timeout_seconds", 0),
        ("timeout_seconds", 86_401),
        ("command_max_attempts", 0),
        ("handler_max_attempts", 101),
        ("on_server_exit", "explode"),
        ("grace_seconds", -1),
        ("wait_cap_seconds", 0.5),
        ("keep_days", 0),
        ("keep_failed_days", -1),
        ("cleanup_interval_seconds", 0),
        ("log_level", "LOUD"),
        ("limits", "gpu=2"),
        ("limits", "[2]"),
        ("limits", {"gpu": 0}),
        ("limits", {"gpu": 1001}),
        ("limits", {"": 1}),
        ("limits", {"k" * 201: 1}),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValidationError) as refused:
        load_settings(**{name: value})
    assert readable(refused.value).startswith((f"{name} ", f"{name}."))


def test_a_misspelt_variable_is_found_and_what_commands_are_given_is_not() -> None:
    known = variables()
    given_to_commands = ["TASKORCH_TASK_ID", "TASKORCH_ATTEMPT", "TASKORCH_IDEMPOTENCY_KEY"]
    found = unknown_variables([*known, *given_to_commands, "TASKORCH_CONCURENCY", "TASKORCH_", "PATH"])
    assert found == ["TASKORCH_", "TASKORCH_CONCURENCY"]


def test_a_misspelt_key_of_the_config_file_is_found() -> None:
    assert unknown_keys() == []
    write_config('concurency = 3\nallow_commands = "git"\n[section]\nx = 1\n')
    assert unknown_keys() == ["concurency", "section"]


def test_limits_are_a_table_of_the_file_or_json_in_a_variable_which_takes_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert load_settings().limits == {}
    write_config('concurrency = 3\n[limits]\ngpu = 2\n"*" = 4\n')
    assert (load_settings().limits, unknown_keys()) == ({"gpu": 2, "*": 4}, [])
    monkeypatch.setenv("TASKORCH_LIMITS", '{"deploy": 3}')
    assert load_settings().limits == {"deploy": 3}
