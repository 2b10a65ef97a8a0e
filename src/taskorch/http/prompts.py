"""Tasks that are a prompt and a folder: work that some agent outside takes and does."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from taskorch.calls.arguments import Arguments, parse
from taskorch.domain.errors import shown
from taskorch.domain.outside import OUTSIDE


def _written(value: str) -> str:
    if not value.strip():
        raise ValueError(f"{shown(value)} is blank; write what is to be done")
    return value


class Prompt(Arguments):
    prompt: Annotated[
        str, Field(min_length=1, max_length=10_000, description="what is to be done, in full"), AfterValidator(_written)
    ]
    work_directory: Annotated[str, Field(min_length=1, max_length=512, description="where")]
    metadata: dict[str, Any] | None = None


def as_task(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """A body with a prompt where kind and payload would stand, as a task of the kind `outside`. Raises InvalidInput."""
    if "prompt" not in raw or raw.keys() & {"kind", "payload"}:
        return raw
    said = {name: value for name, value in raw.items() if name in Prompt.model_fields}
    payload = parse(Prompt, said, strict=True).model_dump(exclude_none=True)
    return {"kind": OUTSIDE, "payload": payload} | {name: raw[name] for name in raw if name not in said}
