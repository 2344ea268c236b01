"""The OpenAPI document: what FastAPI gathers from the routes, with the bodies that are read by hand put in."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema

from app.api.problems import MEDIA_TYPE, PROBLEMS, Refused, problem_body
from app.api.schemas.answers import Problem
from app.api.schemas.requests import REQUEST_BODIES
from app.api.unbuilt import UNBUILT

TITLE = "Planwave"
SUMMARY = "Plan-and-execute as a service"
DESCRIPTION = """A goal in, a stored plan, its tasks run in dependency order and in parallel, the answer out.

Lists come in pages: `limit` (1..200, default 50) and `cursor`. Errors are `application/problem+json` (RFC 9457); decide
by their `code`. Every answer carries `X-Request-Id`; one that you send (up to 128 letters, digits and `._:-`) is kept.
Bodies are JSON of at most 256 KiB, 4 MiB with a `plan`, and 32 levels deep. Unknown fields are refused, and so is what
is not built yet (`not_supported`)."""
TAGS = [
    {"name": "goals", "description": "What is asked."},
    {"name": "runs", "description": "Executions of goals."},
    {"name": "plans", "description": "What was planned for a run."},
    {"name": "tasks", "description": "What a run does."},
    {"name": "reviews", "description": "What a run asks of a person."},
    {"name": "events", "description": "What happened to a run."},
    {"name": "tools", "description": "What tasks can call."},
    {"name": "health", "description": "Whether the service works."},
]

_HEADERS: Mapping[str, tuple[str, str]] = {
    "Location": ("The run's path.", "/runs/01980000-0000-7000-8000-000000000002"),
    "Retry-After": ("Seconds until it is worth asking again; absent once the run is finished.", "1"),
    "ETag": ("Stands for this version of the run.", '"7"'),
    "Preference-Applied": ("The wait that was granted.", "wait=20"),
    "Idempotency-Replayed": ("`true` when the run was made by an earlier request with this key.", "true"),
    "X-Request-Id": ("The request's id, also in the log.", "4f9c6b1e0e4b4d0f9a3c6a3a7f1d2b5c"),
    "Allow": ("The methods that the path takes.", "GET"),
}
_EVERYWHERE = ("internal_error", "storage_unavailable", "storage_full")
_REF = "#/components/schemas/"


def answer(description: str, example: Any, *headers: str) -> dict[str, Any]:
    """An answer of a route as its `responses` show it."""
    return {
        "description": description,
        "content": {"application/json": {"example": example}},
        "headers": header_refs(*headers),
    }


def header_refs(*names: str) -> dict[str, Any]:
    """The headers of an answer, described once for all."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def problems(*codes: str, not_acceptable: str | None = None) -> dict[int | str, dict[str, Any]]:
    """The problems a route can answer with, by status; those that every route has are added.

    `not_acceptable` is a code that this route answers with 406.
    """
    found: dict[int | str, dict[str, Any]] = {}
    placed = [(PROBLEMS[code][0], code) for code in (*codes, *_EVERYWHERE)]
    if not_acceptable is not None:
        placed.append((406, not_acceptable))
    for status, code in placed:
        title = PROBLEMS[code][1]
        response = found.setdefault(
            status,
            {
                "description": "",
                "content": {MEDIA_TYPE: {"schema": {"$ref": _REF + "Problem"}, "examples": {}}},
                "headers": {},
            },
        )
        response["description"] = ". ".join(filter(None, (response["description"], f"`{code}`: {title}")))
        response["content"][MEDIA_TYPE]["examples"][code] = {"value": _example(code, status)}
        if code in ("plan_not_ready", "storage_unavailable", "storage_full", "draining", "idempotency_in_progress"):
            response["headers"]["Retry-After"] = {"$ref": "#/components/headers/Retry-After"}
    return found


def body(model: type[Any], examples: Mapping[str, Any], *, required: bool = True) -> dict[str, Any]:
    """A body that the route reads by hand, as its `openapi_extra`."""
    schema = {"$ref": _REF + model.__name__}
    content = {"schema": schema, "examples": {name: {"value": value} for name, value in examples.items()}}
    return {"requestBody": {"required": required, "content": {"application/json": content}}}


def document(app: FastAPI, routes: Sequence[APIRoute]) -> Callable[[], dict[str, Any]]:
    """Makes the document of this app, whose own routes these are, once."""

    def made() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(
                get_openapi(
                    title=app.title,
                    version=app.version,
                    summary=SUMMARY,
                    description=DESCRIPTION,
                    routes=app.routes,
                    tags=TAGS,
                    license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
                ),
                routes,
            )
        return app.openapi_schema

    return made


def _complete(schema: dict[str, Any], routes: Sequence[APIRoute]) -> dict[str, Any]:
    components = schema["components"]
    components["headers"] = {
        name: {"description": text, "schema": {"type": "string"}, "example": example}
        for name, (text, example) in _HEADERS.items()
    }
    components["schemas"] |= _schemas(*((model, "validation") for model in REQUEST_BODIES), (Problem, "serialization"))
    for row in UNBUILT:
        properties = components["schemas"][row.body.__name__]["properties"]
        properties[row.field] = {"title": properties[row.field]["title"], **row.schema}
    # The framework's own account of bad parameters, which our handler answers otherwise.
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    for path in schema["paths"].values():
        for operation in path.values():
            responses = operation["responses"]
            if "HTTPValidationError" in str(responses.get("422")):
                del responses["422"]
            for response in responses.values():
                response.setdefault("headers", {})["X-Request-Id"] = {"$ref": "#/components/headers/X-Request-Id"}
    for route in routes:
        for method in route.methods or ():
            _restore_examples(schema["paths"][route.path][method.lower()]["responses"], route.responses)
    return schema


def _restore_examples(shown: dict[str, Any], declared: Mapping[int | str, dict[str, Any]]) -> None:
    """FastAPI drops every null of the document, and with them the empty fields of the examples."""
    for status, response in declared.items():
        for media_type, content in response.get("content", {}).items():
            shown[str(status)]["content"][media_type].update(
                {name: content[name] for name in ("example", "examples") if name in content}
            )


def _schemas(*models: tuple[type[Any], Any]) -> dict[str, Any]:
    _, found = models_json_schema(models, ref_template=_REF + "{model}")
    schemas: dict[str, Any] = found["$defs"]
    return schemas


def _example(code: str, status: int) -> dict[str, Any]:
    scope = {"path": "/runs/01980000-0000-7000-8000-000000000002", "state": {"request_id": "4f9c6b1e0e4b4d0f"}}
    return problem_body(scope, Refused(code, PROBLEMS[code][1] + ".", status=status))
