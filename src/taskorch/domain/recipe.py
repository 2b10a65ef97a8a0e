"""A recipe: a command that the operator has written, with typed slots for what a task may choose.

An item `{slot}` becomes one whole argument, or falls away when its slot has no value. A slot is never part of a longer
text, and what a value holds is never read as a slot. Whether the program and the folders are there is not asked here.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    create_model,
)

from taskorch.domain.argv import plain, variables
from taskorch.domain.errors import InvalidInput, readable, shown
from taskorch.domain.fields import plain_schema
from taskorch.domain.slot import Slot, Table

NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
SLOT_NAME = re.compile("[A-Za-z][A-Za-z0-9_]{0,63}")
HOLE = re.compile(r"(?<!\{)\{([A-Za-z_][A-Za-z0-9_-]*)\}(?!\})")
LITERAL = re.compile(r"\{(\{[A-Za-z_][A-Za-z0-9_-]*\})\}")


def _item(value: Any) -> Any:
    texts = cast(list[Any], value if isinstance(value, list) else [value])
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"{shown(cast(Any, value))} is not allowed; it must be a string, or a list of strings that stay together"
        )
    for text in texts:
        plain(text)
    return cast(Any, value)


def _slot_name(name: str) -> str:
    if not SLOT_NAME.fullmatch(name):
        raise ValueError("is no name for a slot; begin with a letter, go on with letters, digits and _, at most 64")
    return name


def _variable(name: str) -> str:
    if not name or "=" in name:
        raise ValueError("is no variable's name; use names without '='")
    return name


def _recipe_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError("is no name for a recipe; use letters, digits, '.', '_' and '-', at most 64")
    return name


Text = Annotated[str, AfterValidator(plain)]
Item = Annotated[str | list[str], PlainValidator(_item)]
Environment = dict[Annotated[Text, AfterValidator(_variable)], Text]


class Recipe(Table):
    """A table `[recipes.NAME]`. A list in `argv` falls away as a whole when a slot in it has no value."""

    argv: Annotated[list[Item], Field(min_length=1, max_length=1024)]
    slots: dict[Annotated[str, AfterValidator(_slot_name)], Slot] = Field(default_factory=dict)
    cwd: Text | None = None
    env: Annotated[Environment, BeforeValidator(variables)] = Field(default_factory=dict)
    stdin: Text | None = None
    timeout_seconds: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] | None = None
    max_attempts: Annotated[int, Field(ge=1, le=100)] | None = None
    description: str = ""

    @property
    def program(self) -> str:
        """The first item, as it is written."""
        return literal(cast(str, self.argv[0]))

    @cached_property
    def secret(self) -> frozenset[str]:
        """The slots whose values replies do not show: they become values of variables."""
        return frozenset(filter(None, map(hole, self.env.values())))

    def values(self, payload: Mapping[str, Any], later: Collection[str] = ()) -> dict[str, str]:
        """The texts of the slots that have a value, null being none, but for slots whose value comes `later`.

        Raises InvalidInput.
        """
        given = {name: value for name, value in payload.items() if value is not None}
        model = self._model(later) if later else self._payload
        try:
            parsed = model.model_validate(given).model_dump(by_alias=True, exclude={f"slot_{name}" for name in later})
        except ValidationError as error:
            raise InvalidInput(f"{readable(error, 'payload', list(self.slots))} {self.takes}") from None
        texts = {name: self.slots[name].text(value) for name, value in parsed.items()}
        return {name: text for name, text in texts.items() if text is not None}

    def confined(self, values: Mapping[str, str]) -> set[str]:
        """The slots whose paths must lie below TASKORCH_ALLOW_DIRS: what the operator has written himself need not."""
        paths = {name for name in values if self.slots[name].type == "path" and not self.slots[name].anywhere}
        return {n for n in paths if self.slots[n].choices is None and self.slots[n].default != values[n]}

    def arguments(self, values: Mapping[str, str]) -> list[str]:
        """The items with their slots filled, the program's name first."""
        found: list[str] = []
        for item in self.argv:
            texts = [filled(text, values) for text in _group(item)]
            found += [text for text in texts if text is not None] if None not in texts else []
        return found

    def variables(self, values: Mapping[str, str]) -> dict[str, str]:
        """The environment with its slots filled; a variable without a value is not set."""
        texts = {name: filled(text, values) for name, text in self.env.items()}
        return {name: text for name, text in texts.items() if text is not None}

    @property
    def takes(self) -> str:
        """A sentence on the slots and what they take."""
        if not self.slots:
            return "This recipe has no slots: leave payload out."
        told = [
            f"{name}{'' if slot.is_required else '?'}: {slot.told}{self._default_told(name)}"
            for name, slot in self.slots.items()
        ]
        return f"This recipe takes {'; '.join(told)}."

    def payload_schema(self) -> dict[str, Any]:
        """The JSON schema of the payload: closed, without titles."""
        return plain_schema(self._payload)

    def flaws(self) -> Iterator[str]:
        if not isinstance(self.argv[0], str) or HOLE.search(self.argv[0]):
            yield "does not begin argv with a program; name it or give its absolute path there, a slot it cannot be"
        used = {name for _, text in self._texts() for name in HOLE.findall(text)}
        for where, text in self._texts():
            found = HOLE.search(text)
            if found and found[0] != text:
                what = f"{where} {shown(text)}" if where == "argv" else where
                yield (
                    f"has {found[0]} inside a longer text in {what}; a slot is a whole item and never a part of one. "
                    f"Let {found[0]} stand alone, or write {{{found[0]}}} for that very text"
                )
            if found and found[1] not in self.slots:
                yield f"has {found[0]} in {where}, and no slot of that name; add [recipes.NAME.slots.{found[1]}]"
        for name in [name for name in self.slots if name not in used]:
            yield f"has the slot {shown(name)} and no item {{{name}}} that it could fill"
        for item in self.argv:
            if isinstance(item, list) and not any(map(hole, item)):
                yield f"has a list without a slot in argv, {shown(item)}; write its items without the brackets"
        if self.cwd is not None:
            name = hole(self.cwd)
            if name is None and not self.cwd.startswith("/"):
                yield f"has the relative cwd {shown(self.cwd)}; use an absolute path, or a slot"
            if name is not None and self.slots[name].type != "path":
                yield f"has {self.cwd} as cwd, and its type is {self.slots[name].type}; make it a path"
        for name, slot in self.slots.items():
            if flaw := slot.flaw_of_use(barred=self._is_barred(name)):
                yield f"has a slot {shown(name)} that {flaw}"

    @cached_property
    def _payload(self) -> type[BaseModel]:
        return self._model()

    def _model(self, later: Collection[str] = ()) -> type[BaseModel]:
        """The payload as a model, its fields by aliases: a slot may have a name that means something to pydantic.

        Slots whose value comes `later` take anything.
        """
        fields: dict[str, Any] = {}
        for name, slot in self.slots.items():
            barred, hidden = self._is_barred(name), name in self.secret
            accepted = Any if name in later else slot.accepted(barred=barred, hidden=hidden)
            told: dict[str, Any] = {"alias": name, "description": slot.description or None} | self._default(
                name, accepted
            )
            fields[f"slot_{name}"] = (accepted, Field(**told))
        return create_model("Payload", __config__=ConfigDict(extra="forbid"), **fields)

    def _default(self, name: str, accepted: Any) -> dict[str, Any]:
        """What stands in a slot that is given no value; a secret comes from a factory, which no schema shows."""
        slot = self.slots[name]
        if slot.is_required:
            return {}
        if slot.default is None:
            return {"default": None if slot.flag is None else False}
        default = TypeAdapter[Any](accepted).validate_python(slot.default)
        return {"default_factory": lambda: default} if name in self.secret else {"default": default}

    def _is_barred(self, name: str) -> bool:
        """Whether its texts may not begin with `-`: a program would read them as an option."""
        in_argv = any(hole(text) == name for item in self.argv for text in _group(item))
        return in_argv and not self.slots[name].allow_dash

    def _default_told(self, name: str) -> str:
        default = self.slots[name].default
        if default is None:
            return ""
        return " (has a default)" if name in self.secret else f" (default {shown(default)})"

    def _texts(self) -> Iterator[tuple[str, str]]:
        """All that may be a slot, and where it stands."""
        yield from (("argv", text) for item in self.argv for text in _group(item))
        yield from ((f"env {name}", text) for name, text in self.env.items())
        yield from ((where, text) for where, text in (("cwd", self.cwd), ("stdin", self.stdin)) if text is not None)


Recipes = dict[Annotated[str, AfterValidator(_recipe_name)], Recipe]


def hole(text: str) -> str | None:
    """The slot that stands for the whole text; None for a fixed one."""
    found = HOLE.fullmatch(text)
    return found and found[1]


def literal(text: str) -> str:
    """A fixed text as it is meant: `{{word}}` is `{word}`."""
    return LITERAL.sub(r"\1", text)


def filled(text: str, values: Mapping[str, str]) -> str | None:
    """A fixed text, or the value of the slot that stands for it; None when it has none."""
    name = hole(text)
    return literal(text) if name is None else values.get(name)


def unknown_keys(recipes: Any) -> list[str]:
    """The keys of recipes, as the file has them, that mean nothing: `recipes.NAME.KEY`."""
    found: list[str] = []
    for name, table in _tables(recipes):
        found += [f"recipes.{name}.{key}" for key in Recipe.unknown(table)]
        for slot, inner in _tables(table.get("slots")):
            found += [f"recipes.{name}.slots.{slot}.{key}" for key in Slot.unknown(inner)]
    return found


def _tables(value: Any) -> list[tuple[str, dict[str, Any]]]:
    tables = cast(dict[str, Any], value) if isinstance(value, dict) else {}
    return [(name, cast(dict[str, Any], table)) for name, table in tables.items() if isinstance(table, dict)]


def _group(item: str | list[str]) -> list[str]:
    return [item] if isinstance(item, str) else item
