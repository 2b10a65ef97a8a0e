"""The REST API as an OpenAPI document: the table of operations, and the models that requests are checked by."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from taskorch.calls import arguments as args
from taskorch.calls.service import Service
from taskorch.domain.fields import plain_schema
from taskorch.domain.outside import OUTSIDE
from taskorch.http import schemas
from taskorch.http.operations import OPERATIONS, Operation
from taskorch.http.prompts import Prompt
from taskorch.http.schemas import Schema

ANYWHERE = (400, 401, 403, 421, 500, 503)  # statuses that any request may be answered with
OF_BODIES = (408, 413, 415)
NULL: Schema = {"type": "null"}
DESCRIPTION = """\
Durable background tasks. Every answer, errors too, is `{success, data, error, timestamp}`; this document alone is not.
Each path under `/api` is answered under `/api/v1` as well. Requests are checked strictly: what is not told here is
refused, but `tags`, which is understood as `labels` or `label`. Times are ISO 8601, in UTC in answers; what is empty is
left out of them."""
EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "createTask": {"kind": "echo", "payload": {"text": "hello"}, "name": "greet", "labels": ["demo"]},
    "updateTask": {"priority": "high", "expected_version": 1},
    "cancelTask": {"reason": "no longer needed"},
    "retryTask": {"delay_seconds": 60},
}
# What can be asked of a task once it is there, for clients that follow links.
LINKS = ("getTask", "updateTask", "cancelTask", "retryTask", "getTaskOutput", "deleteTask")


def document(service: Service) -> Schema:
    """What this server answers: prompts where it knows outside work, and the kinds that it knows as examples."""
    paths: dict[str, Schema] = {"/health": {"get": _health()}}
    for operation in OPERATIONS:
        paths.setdefault(f"/api{operation.path}", {})[operation.method.lower()] = _operation(operation, service)
    return {
        "openapi": "3.1.0",
        "info": {"title": "taskorch", "version": service.version, "description": DESCRIPTION},
        "paths": paths,
        "security": [{"token": []}],
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                **schemas.DATA,
                **{f"{name}Answer": schemas.enveloped(name) for name in schemas.DATA},
                "Failure": schemas.FAILURE,
            },
            "responses": {
                str(status): {"description": HTTPStatus(status).phrase, "content": _json("Failure")}
                for status in (*ANYWHERE, *OF_BODIES, 404, 409)
            },
        },
    }


def _operation(operation: Operation, service: Service) -> Schema:
    schema = plain_schema(operation.arguments)
    parameters = [_path_parameter(schema, name) for name in ("task_id",) if f"{{{name}}}" in operation.path]
    made: Schema = {"operationId": operation.id, "summary": operation.summary}
    if operation.sends == "nothing":
        parameters += [_query_parameter(schema, name) for name in schema.get("properties", {}) if name != "task_id"]
    else:
        examples = {"usual": {"value": EXAMPLES[operation.id]}}
        content = {"schema": _body(operation, schema, service), "examples": examples}
        made["requestBody"] = {
            "required": operation.sends == "required",
            "content": {"application/json": content},
        }
    if operation.conditional:
        parameters.append(IF_MATCH)
    if parameters:
        made["parameters"] = parameters
    fails = {*ANYWHERE, *operation.fails, *(OF_BODIES if operation.sends != "nothing" else ())}
    made["responses"] = {
        **{str(status): _success(operation, status, data) for status, data in operation.data.items()},
        **{str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(fails)},
    }
    return made


IF_MATCH: Schema = {
    "name": "If-Match",
    "in": "header",
    "description": "the ETag of the task as you know it, the same as expected_version",
    "schema": {"type": "string", "pattern": r'^(\*|"[1-9][0-9]{0,14}")$'},
}


def _path_parameter(schema: Schema, name: str) -> Schema:
    told = schema["properties"][name]
    return {"name": name, "in": "path", "required": True, "schema": told}


def _query_parameter(schema: Schema, name: str) -> Schema:
    told = dict(schema["properties"][name])
    if "anyOf" in told:  # an optional one: none is said by leaving it out
        (some,) = (one for one in told.pop("anyOf") if one != NULL)
        told |= some
    description = told.pop("description", None)
    return {"name": name, "in": "query", "schema": told} | ({"description": description} if description else {})


def _body(operation: Operation, schema: Schema, service: Service) -> Schema:
    fields: dict[str, Any] = {name: told for name, told in schema["properties"].items() if name != "task_id"}
    required = [name for name in schema.get("required", []) if name in fields]
    if operation.arguments is not args.TaskWish:
        return _closed(fields, required)
    fields["kind"]["examples"] = sorted(service.kinds)
    body = _closed(fields, required)
    if OUTSIDE not in service.kinds:
        return body
    prompt = plain_schema(Prompt)
    rest = {name: told for name, told in fields.items() if name not in ("kind", "payload")}
    return {"anyOf": [body, _closed(rest | prompt["properties"], prompt["required"])]}


def _closed(fields: Mapping[str, Any], required: list[str]) -> Schema:
    """An object of these fields; null is the same as leaving one out where that may be done."""
    told = {name: field if name in required else _or_null(field) for name, field in fields.items()}
    return {"type": "object", "properties": told, "required": required, "additionalProperties": False}


def _or_null(field: Schema) -> Schema:
    if NULL in field.get("anyOf", ()):
        return field
    outer = {name: field[name] for name in ("description", "default", "examples") if name in field}
    inner = {name: value for name, value in field.items() if name not in outer}
    return {"anyOf": [inner, NULL], **outer}


def _success(operation: Operation, status: int, data: str) -> Schema:
    made: Schema = {"description": HTTPStatus(status).phrase, "content": _json(f"{data}Answer")}
    if data == "Task":
        made["headers"] = {
            "ETag": _header("the version, for If-Match alone: progress does not change it", '^"[0-9]+"$')
        }
    if status == 201:
        made["headers"]["Location"] = _header("where the task is", "^/api/tasks/t[0-9a-z]{16}$")
        link = {"parameters": {"task_id": "$response.body#/data/id"}}
        made["links"] = {name: {"operationId": name} | link for name in LINKS}
    return made


def _header(description: str, pattern: str) -> Schema:
    return {"description": description, "required": True, "schema": {"type": "string", "pattern": pattern}}


def _json(name: str) -> Schema:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _health() -> Schema:
    return {
        "operationId": "getHealth",
        "summary": "Whether the server lives; with the token, how its parts are.",
        "security": [{}, {"token": []}],
        "responses": {
            "200": {"description": "OK", "content": _json("HealthAnswer")},
            **{str(status): {"$ref": f"#/components/responses/{status}"} for status in (400, 403, 421, 500, 503)},
        },
    }
