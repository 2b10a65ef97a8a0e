"""A slot of a recipe: what a task may put there, as the operator has written it, and the text that becomes of it."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import SchemaError

from taskorch.domain.argv import plain
from taskorch.domain.errors import did_you_mean, readable, shown
from taskorch.domain.task import HIDDEN

PATH_CHARACTERS = 4_096
MOST = 2**53  # of an integer: beyond it a JavaScript client counts wrongly
KEYS = {  # which types a key is for
    "choices": ("string", "integer", "path"),
    "pattern": ("string",),
    "max_length": ("string",),
    "minimum": ("integer", "number"),
    "maximum": ("integer", "number"),
    "allow_dash": ("string", "integer", "number"),
    "flag": ("boolean",),
    "anywhere": ("path",),
}
TOLD = {
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "path": "an absolute path",
}
LIMITS = ("pattern", "max_length", "minimum", "maximum", "allow_dash")


class Table(BaseModel):
    """A table of config.toml. A key that it does not know may be a misspelt limit: it is refused, not passed over."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _closed(cls, given: Any) -> Any:
        for name in cls.unknown(given):
            near = did_you_mean(name, cls.model_fields)
            raise ValueError(f"has the unknown key {shown(name)}.{near} Its keys: {', '.join(cls.model_fields)}")
        return given

    @model_validator(mode="after")
    def _sound(self) -> Self:
        for flaw in self.flaws():
            raise ValueError(flaw)
        return self

    @classmethod
    def unknown(cls, given: Any) -> list[str]:
        """The keys of a table that mean nothing."""
        return sorted(cast(dict[str, Any], given).keys() - cls.model_fields.keys()) if isinstance(given, dict) else []

    def flaws(self) -> Iterator[str]:
        """What is wrong with it beyond its types, each as what follows the table's name in a sentence."""
        return iter(())


class Slot(Table):
    """`optional`: it may have no value. `allow_dash`: its text may begin with `-`. `flag`: the argument that `true` is.

    `anywhere`: TASKORCH_ALLOW_DIRS does not hold for this path.
    """

    type: Literal["string", "integer", "number", "boolean", "path"]
    description: str = ""
    optional: bool = False
    default: Any = None
    choices: Annotated[list[Any], Field(min_length=1)] | None = None
    pattern: str | None = None
    max_length: Annotated[int, Field(ge=1)] | None = None
    minimum: Annotated[float, Field(allow_inf_nan=False)] | None = None
    maximum: Annotated[float, Field(allow_inf_nan=False)] | None = None
    allow_dash: bool = False
    flag: Annotated[str, Field(min_length=1), AfterValidator(plain)] | None = None
    anywhere: bool = False

    @property
    def is_required(self) -> bool:
        return not self.optional and self.default is None and self.flag is None

    def flaws(self) -> Iterator[str]:
        given = self.model_fields_set
        for name in [name for name, types in KEYS.items() if name in given and self.type not in types]:
            yield f"has {name}, which is for {' and '.join(KEYS[name])} slots; its type is {self.type}"
        if self.choices is not None:
            for name in [name for name in LIMITS if name in given]:
                yield f"has {name} beside choices, which say all that is allowed; leave {name} out"
            wanted = int if self.type == "integer" else str
            for choice in [choice for choice in self.choices if type(choice) is not wanted]:
                yield f"has the choice {shown(choice)}, which is no {self.type}"
        if self.optional and self.default is not None:
            yield "has a default, so it need not be optional; leave optional out"
        if self.pattern is not None and (why := _bad_pattern(self.pattern)):
            yield f"has a pattern {shown(self.pattern)} that is no regular expression: {why}"
        bounds = [bound for bound in (self.minimum, self.maximum) if bound is not None]
        if self.type == "integer" and (broken := [bound for bound in bounds if not bound.is_integer()]):
            yield f"is an integer; {broken[0]:.15g} is no bound for it"
        if bounds != sorted(bounds):
            yield f"has a minimum of {bounds[0]:.15g} above its maximum of {bounds[1]:.15g}"

    def flaw_of_use(self, *, barred: bool) -> str | None:
        """What is wrong with its bounds or its default where it is used; `barred` as for `accepted`."""
        if barred and any(bound is not None and bound < 0 for bound in (self.minimum, self.maximum)):
            return "allows negative numbers, which begin with '-'; add allow_dash = true, if the program takes them"
        if self.default is None:
            return None
        try:
            TypeAdapter[Any](self.accepted(barred=barred, hidden=False)).validate_python(self.default)
        except ValidationError as error:
            return f"has a default that it does not accept: {readable(error, 'default').removesuffix('.')}"
        return None

    def accepted(self, *, barred: bool, hidden: bool) -> Any:
        """The type of its values. `barred`: no text may begin with `-`; `hidden`: errors show no value."""
        made = self._chosen() if self.choices is not None else self._typed(barred)
        return Annotated[made, WrapValidator(self._unshown)] if hidden else made

    def text(self, value: Any) -> str | None:
        """What a value is as an argument, None when it is none."""
        match value:
            case bool() if self.flag is not None:
                return self.flag if value else None
            case bool():
                return "true" if value else "false"
            case float() if value.is_integer() and abs(value) <= MOST:
                return str(int(value))
            case None:
                return None
            case _:
                return str(value)

    @property
    def told(self) -> str:
        """What it takes, in a few words."""
        if self.choices is not None:
            return " or ".join(map(shown, self.choices))
        words = [TOLD[self.type]]
        words += [f"at most {self.max_length} characters"] if self.max_length is not None else []
        words += [f"at least {self.minimum:.15g}"] if self.minimum is not None else []
        words += [f"at most {self.maximum:.15g}"] if self.maximum is not None else []
        words += [f"matching {_whole(self.pattern)}"] if self.pattern is not None else []
        return ", ".join(words)

    def _chosen(self) -> Any:
        chosen: Any = Literal[tuple(self.choices or ())]
        return Annotated[chosen, BeforeValidator(_no_truth)] if self.type == "integer" else chosen

    def _typed(self, barred: bool) -> Any:
        least = 0 if barred and self.minimum is None else self.minimum
        match self.type:
            case "string":
                pattern = None if self.pattern is None else _whole(self.pattern)
                made = Annotated[
                    str, Field(min_length=1, max_length=self.max_length, pattern=pattern), AfterValidator(plain)
                ]
                return Annotated[made, AfterValidator(_no_dash), NO_DASH] if barred else made
            case "integer":
                bounds = Field(
                    ge=-MOST if least is None else int(least), le=MOST if self.maximum is None else int(self.maximum)
                )
                return Annotated[int, bounds, BeforeValidator(_no_truth)]
            case "number":
                bounds = Field(ge=least, le=self.maximum, allow_inf_nan=False)
                return Annotated[float, bounds, BeforeValidator(_no_truth)]
            case "boolean":
                return bool
            case "path":
                size = Field(min_length=1, max_length=PATH_CHARACTERS, json_schema_extra={"pattern": "^/"})
                return Annotated[str, size, AfterValidator(plain), AfterValidator(_absolute)]

    def _unshown(self, value: Any, accept: ValidatorFunctionWrapHandler) -> Any:
        if value == HIDDEN:
            raise ValueError(f"is {HIDDEN!r}, as replies show it; give its value")
        try:
            return accept(value)
        except ValidationError:
            raise ValueError(f"is not allowed; it must be {self.told}") from None


NO_DASH = Field(json_schema_extra={"not": {"pattern": "^-"}})


def _whole(pattern: str) -> str:
    """A pattern that all of a text must match, not a part of it."""
    return f"^(?:{pattern})$"


def _bad_pattern(pattern: str) -> str | None:
    """Why nothing can be matched with it, None when it is sound: alone too, else `_whole` would not hold it."""
    for text in (pattern, _whole(pattern)):
        try:
            TypeAdapter(Annotated[str, Field(pattern=text)])
        except SchemaError as error:
            return str(error).rpartition("error: ")[2].strip()
    return None


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"{shown(value)} is not allowed; it must be a number")
    return value


def _no_dash(text: str) -> str:
    if text.startswith("-"):
        raise ValueError(
            f"{shown(text)} begins with '-', which programs read as an option; leave that out, or ask the user to "
            "permit it for this slot (allow_dash = true in config.toml)"
        )
    return text


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError(f"{shown(path)} is relative; use an absolute path")
    return path
