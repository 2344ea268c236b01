"""Whether a request is one that the OpenAI API describes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

_REQUEST = {"$ref": "#/components/schemas/CreateChatCompletionRequest"}


class RequestSchema:
    """`CreateChatCompletionRequest` of the published description."""

    def __init__(self, file: Path) -> None:
        described = _without_nullable(json.loads(file.read_text(encoding="utf-8")))
        self._validator = Draft202012Validator({**described, **_REQUEST})
        self._known = _properties(_REQUEST, described["components"]["schemas"])

    def errors(self, request: Mapping[str, Any]) -> list[str]:
        """What is wrong with it; parameters that the description does not know count."""
        found = self._validator.iter_errors(request)
        wrong = [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in found]
        return wrong + [f"{name}: not a parameter" for name in request if name not in self._known]


def _without_nullable(schema: Any) -> Any:
    """OpenAPI 3.0's `nullable` in the words of JSON Schema."""
    if isinstance(schema, list):
        return [_without_nullable(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {name: _without_nullable(value) for name, value in schema.items() if name != "nullable"}
    return {"anyOf": [plain, {"type": "null"}]} if schema.get("nullable") is True else plain


def _properties(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> set[str]:
    if "$ref" in schema:
        return _properties(schemas[schema["$ref"].rsplit("/", 1)[1]], schemas)
    names = set(schema.get("properties", {}))
    return names.union(*(_properties(part, schemas) for part in schema.get("allOf", [])))
