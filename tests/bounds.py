"""What a schema allows, in the words of the documents."""

from typing import Any

from taskorch.calls.arguments import LARGEST


def allowed(schema: dict[str, Any]) -> str:
    """What may be given, with its bounds."""
    schema = next((one for one in schema.get("anyOf", []) if one.get("type") != "null"), schema)
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    if isinstance(schema["type"], list):
        return ", ".join(schema["type"])
    if schema.get("format") == "date-time":
        return "time"
    if schema["type"] == "array":
        items = allowed(schema["items"]).split(", ", 1)
        each = f" of {items[1]} each" if items[1:] else ""
        return f"{_bounds(schema, 'Items')} {items[0]}s{each}"
    if schema["type"] == "string" and "maxLength" in schema:
        return f"string, {_bounds(schema, 'Length')} characters"
    return schema["type"] + _numbers(schema)


def _bounds(schema: dict[str, Any], what: str) -> str:
    least, most = schema.get(f"min{what}"), schema[f"max{what}"]
    return f"{least} to {most:,}" if least else f"at most {most:,}"


def _numbers(schema: dict[str, Any]) -> str:
    least, above, most = (schema.get(name) for name in ("minimum", "exclusiveMinimum", "maximum"))
    bounded = most not in (None, LARGEST)
    if above is not None:
        return f", more than {above}" + (f", at most {most:,}" if bounded else "")
    return "" if least is None else f", {least:,}" + (f" to {most:,}" if bounded else " or more")
