"""Every way to say no over HTTP: one table from code to status, and the problem+json (RFC 9457) made of it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from app.domain.errors import PlanwaveError, StorageFull, StorageUnavailable
from app.domain.text import shortened, storable

MEDIA_TYPE = "application/problem+json"

PROBLEMS: Mapping[str, tuple[int, str]] = {
    "bad_request": (400, "The request cannot be read"),
    "invalid_json": (400, "The body is not JSON that can be taken"),
    "not_found": (404, "There is nothing here"),
    "goal_not_found": (404, "There is no such goal"),
    "run_not_found": (404, "There is no such run"),
    "task_not_found": (404, "The run has no such task"),
    "review_not_found": (404, "The run has no such review"),
    "plan_not_found": (404, "The run has no such plan"),
    "plan_not_ready": (404, "The run has no plan yet"),
    "method_not_allowed": (405, "The resource does not take this method"),
    "invalid_transition": (409, "The run's status does not allow this"),
    "run_not_finished": (409, "The run is not finished"),
    "already_answered": (409, "The review has its answer"),
    "review_closed": (409, "Nobody waits for an answer any more"),
    "idempotency_in_progress": (409, "A request with this Idempotency-Key is being worked on"),
    "run_deleted": (410, "The run made with this Idempotency-Key was deleted"),
    "body_too_large": (413, "The body is too large"),
    "unsupported_media_type": (415, "The body must be application/json"),
    "invalid_request": (422, "The request does not hold what it should"),
    "unknown_field": (422, "The body has fields that do not exist"),
    "not_supported": (422, "This is not built yet"),
    "context_too_large": (422, "The context is too large"),
    "plan_invalid": (422, "The plan cannot be walked"),
    "invalid_schema": (422, "An output schema is not usable"),
    "unknown_tool": (422, "A tool is not one of those that there are"),
    "no_price": (422, "The cost of a model is not known"),
    "budget_too_small": (422, "The budget is used up already"),
    "not_allowed": (422, "The review does not take this decision"),
    "output_schema_mismatch": (422, "The result does not match its output schema"),
    "invalid_cursor": (422, "The cursor is not one of this list"),
    "invalid_idempotency_key": (422, "The Idempotency-Key is not usable"),
    "idempotency_key_reused": (422, "The Idempotency-Key was used for another request"),
    "internal_error": (500, "Something went wrong here"),
    "storage_unavailable": (503, "The database cannot be reached"),
    "storage_full": (503, "The database has no room left"),
    "draining": (503, "The service is shutting down"),
}

_OF_FAULTS = PROBLEMS.keys() - {"not_allowed"}
"""What a fault may give its name to; a value that a field does not take is an `invalid_request`."""
_BY_STATUS = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
MAX_ERRORS = 1_000
"""How many entries `errors` lists; `detail` gives their number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One thing that is wrong with a request: `pointer` into the body, or the name of a query parameter or header."""

    code: str
    message: str
    pointer: str | None = None
    query: str | None = None
    header: str | None = None
    more: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """As an entry of `errors`."""
        entry: dict[str, Any] = {"pointer": self.pointer, "code": self.code, "message": self.message}
        if self.query is not None:
            entry["query"] = self.query
        if self.header is not None:
            entry["header"] = self.header
        return entry | dict(self.more or {})


class Refused(PlanwaveError):
    """A request that is answered with a problem. `status` only where it is not the table's; `more` adds members."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Iterable[Fault] = (),
        headers: Mapping[str, str] | None = None,
        status: int | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.status, self.title = PROBLEMS[code]
        self.status = status or self.status
        self.detail = detail
        self.errors = list(errors)
        self.headers = headers
        self.more = more


def refused_for(faults: list[Fault]) -> Refused:
    """The 422 for these faults: under their own code when they share one that says enough by itself."""
    codes = {fault.code for fault in faults}
    code = codes.pop() if len(codes) == 1 else "invalid_request"
    detail = faults[0].message if len(faults) == 1 else f"{len(faults)} things are wrong; `errors` lists them."
    return Refused(code if code in _OF_FAULTS else "invalid_request", detail, errors=faults)


def problem(scope: Scope, refused: Refused) -> Response:
    """The answer. Text from outside is made storable: whatever was sent, the answer can be encoded."""
    text = json.dumps(problem_body(scope, refused), ensure_ascii=False, separators=(",", ":"))
    return Response(storable(text), refused.status, refused.headers, media_type=MEDIA_TYPE)


def problem_body(scope: Scope, refused: Refused) -> dict[str, Any]:
    """The problem's members (RFC 9457, section 3)."""
    return {
        "type": f"urn:planwave:problem:{refused.code}",
        "title": refused.title,
        "status": refused.status,
        "detail": shortened(refused.detail, 2_000),
        "instance": shortened(quote(storable(scope["path"])), 500),
        "code": refused.code,
        "request_id": scope.get("state", {}).get("request_id"),
        "errors": [fault.as_json() for fault in refused.errors[:MAX_ERRORS]],
        **refused.more,
    }


async def answer_error(request: Request, error: Exception) -> Response:
    """The problem for what a route or the framework raises; every such type that is not ours is mapped here."""
    match error:
        case Refused():
            refused = error
        case StorageFull():
            detail = "The database has no room left: what is there can be read, and nothing new can be taken for now."
            refused = Refused("storage_full", detail, headers={"Retry-After": "5"})
        case StorageUnavailable():
            detail = "The database cannot be reached or cannot take the write now; try again shortly."
            refused = Refused("storage_unavailable", detail, headers={"Retry-After": "1"})
        case RequestValidationError():
            faults = [_parameter_fault(found["loc"], found["msg"]) for found in error.errors()]
            refused = Refused("invalid_request", "Query parameters are not usable.", errors=faults)
        case HTTPException():
            code = _BY_STATUS.get(error.status_code, "bad_request")
            detail = f"{request.method} {shortened(quote(storable(request.scope['path'])), 200)}: {PROBLEMS[code][1]}."
            refused = Refused(code, detail, headers=error.headers)
        case _:
            raise error
    return problem(request.scope, refused)


def _parameter_fault(location: Sequence[str | int], message: str) -> Fault:
    return Fault(code="invalid_parameter", message=message, query=str(location[1]))
