"""What a payload has to hold, as a model reads it after a wrong call."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, TypeAdapter, create_model
from typing_extensions import TypeAliasType, TypedDict

from taskorch.domain.fields import MOST_BYTES, expected


class Crop(BaseModel):
    left: int
    tags: list[str] = []


class Image(BaseModel):
    size: Annotated[int, Field(ge=1)]
    mode: Literal["fit", "fill"] = "fit"
    cut: Crop | None = None
    more: Any = None


class Mail(TypedDict):
    to: str


Nest = TypeAliasType("Nest", "list[Nest]")


class Folder(BaseModel):
    name: str
    inside: "list[Folder]" = []


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (
            Image,
            '{"size": integer, "mode"?: "fit"|"fill", "cut"?: {"left": integer, "tags"?: [string]}|null, "more"?: any}',
        ),
        (Mail, '{"to": string}'),
        (Folder, '{"name": string, "inside"?: [{"name": string, "inside"?: array}]}'),
        (Nest, "[[[array]]]"),
        (create_model("Empty"), "{}"),
        (create_model("Seven", n=(Literal[1, 2, 3, 4, 5, 6, 7], ...)), '{"n": 1|2|3|4|5|6|…}'),
        (create_model("One", kind=(Literal["é"], ...)), '{"kind": "é"}'),
        (dict[str, int], "object"),
    ],
)
def test_a_type_is_said_as_a_model_would_write_it(asked: Any, line: str) -> None:
    assert expected(TypeAdapter(asked).json_schema()) == line


def test_a_schema_that_others_wrote_is_read_as_far_as_it_is_understood() -> None:
    fields = {"a": True, "b": {"type": ["string", "null"]}, "c": {"$ref": "https://elsewhere/x"}, "d": {"items": {}}}
    assert expected({"type": "object", "properties": fields}) == '{"a"?: any, "b"?: string|null, "c"?: any, "d"?: any}'


def test_what_is_too_long_is_first_flattened_and_then_cut_behind_the_required_fields() -> None:
    crops = create_model("Crops", **{f"crop_{n:02}": (Crop, ...) for n in range(15)})
    assert expected(crops.model_json_schema()).startswith('{"crop_00": object, "crop_01": object, ')
    optional = {f"optional_{n:02}": (int, 0) for n in range(40)}
    many = create_model("Many", **optional, needed=(str, ...))
    line = expected(many.model_json_schema())
    assert line.startswith('{"needed": string, "optional_00"?: integer, ') and line.endswith(": integer, …}")
    assert MOST_BYTES - 30 < len(line.encode()) <= MOST_BYTES


@pytest.mark.parametrize("character", ["x", "é", "𝄞"])
def test_no_name_is_so_long_that_the_line_grows_over_its_limit(character: str) -> None:
    for length in range(60, 400, 17):
        asked = create_model("Long", **{character * length: (int, ...)}, n=(int, 0))
        assert len(expected(asked.model_json_schema()).encode()) <= MOST_BYTES
