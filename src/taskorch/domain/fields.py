"""What a payload has to hold: as a JSON schema, and in one short line: `{"width": integer, "height"?: integer}`."""

import json
from collections.abc import Mapping
from typing import Any, ClassVar, cast

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

MOST_BYTES = 380
CHOICES = 6  # of an enumeration, the first ones

Schema = Mapping[str, Any]


class Plain(GenerateJsonSchema):
    """Makes schemas without titles, and without defaults that say nothing."""

    silent: ClassVar[tuple[Any, ...]] = (None,)

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: Any) -> dict[str, Any]:
        made = super().default_schema(schema)
        return {name: value for name, value in made.items() if name != "default" or value not in self.silent}


def plain_schema(model: type[BaseModel], maker: type[Plain] = Plain) -> dict[str, Any]:
    """The model's JSON schema, without a title of its own either."""
    made = model.model_json_schema(schema_generator=maker)
    return {name: value for name, value in made.items() if name != "title"}


def expected(schema: Schema) -> str:
    """A JSON schema as such a line, required fields first.

    At most 380 bytes: of what is longer, objects within it are not spelled out, and then its last fields are left out.
    """
    for levels in (3, 1):
        if _fits(line := _words(schema, schema, levels)):
            return line
    fields = _fields(_resolved(schema, schema), schema, 0)
    while fields and not _fits(f"{{{', '.join([*fields, '…'])}}}"):
        fields.pop()
    return f"{{{', '.join([*fields, '…'])}}}" if fields else "object"


def _fits(line: str) -> bool:
    return len(line.encode()) <= MOST_BYTES


def _words(schema: Schema, whole: Schema, levels: int) -> str:
    """`whole` has the definitions; what holds others is spelled out `levels` deep: a type may hold itself."""
    match _resolved(schema, whole):
        case {"const": value}:
            return json.dumps(value, ensure_ascii=False)
        case {"enum": values}:
            return _any_of([json.dumps(value, ensure_ascii=False) for value in values])
        case {"anyOf": several} | {"oneOf": several}:
            return _any_of([_words(one, whole, levels) for one in several])
        case {"properties": _} as found if levels:
            return f"{{{', '.join(_fields(found, whole, levels - 1))}}}"
        case {"type": "array", "items": item} if levels:
            return f"[{_words(item, whole, levels - 1)}]"
        case {"type": str(name)}:
            return name
        case {"type": [*names]}:
            return _any_of([str(name) for name in names])
        case _:
            return "any"


def _fields(schema: Schema, whole: Schema, levels: int) -> list[str]:
    """Each property with its type, the required ones first."""
    fields: Mapping[str, Any] = schema.get("properties", {})
    required = schema.get("required", ())
    marks = {name: "" if name in required else "?" for name in fields}
    return [
        f"{json.dumps(name, ensure_ascii=False)}{marks[name]}: {_words(fields[name], whole, levels)}"
        for name in sorted(fields, key=lambda name: marks[name])
    ]


def _resolved(schema: Any, whole: Schema) -> Schema:
    if not isinstance(schema, dict):
        return {}  # `true` is a schema too, of anything
    found = cast(dict[str, Any], schema)
    path = found.get("$ref")
    return whole.get("$defs", {}).get(str(path).rpartition("/")[2], {}) if path else found


def _any_of(words: list[str]) -> str:
    several = list(dict.fromkeys(words))
    return "|".join(several[:CHOICES] + ["…"] * (len(several) > CHOICES))
