"""Routes on events: what happened to a run, in order."""

from typing import Annotated

from fastapi import APIRouter, Header, Query

from app.api import examples
from app.api.openapi import answer, problems
from app.api.pages import MAX_INTEGER_POSITION, Paging
from app.api.problems import Refused
from app.api.runs import RunOfPath, require_run
from app.api.schemas.answers import EventPage
from app.api.services import Tenant, Wired
from app.api.showing import event_of
from app.storage.events import list_events

router = APIRouter(tags=["events"])


@router.get(
    "/runs/{run_id}/events",
    operation_id="listEvents",
    summary="What happened to a run",
    responses={
        200: answer("Events in order.", examples.page_of(examples.EVENT, examples.TOOL_CALLED, examples.TOOL_RETURNED)),
        **problems("run_not_found", "invalid_request", "invalid_cursor", not_acceptable="not_supported"),
    },
)
async def list_events_of_run(
    *,
    services: Wired,
    tenant: Tenant,
    run_id: RunOfPath,
    paging: Paging,
    after: Annotated[int, Query(ge=0, le=MAX_INTEGER_POSITION, description="Only events with a greater `seq`.")] = 0,
    accept: Annotated[str, Header(include_in_schema=False)] = "*/*",
) -> EventPage:
    """Numbers have no gaps: to follow a run, ask again with `after` set to the last `seq` you have."""
    ranges = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    if "text/event-stream" in ranges and not ranges & {"application/json", "application/*", "*/*"}:
        detail = "The live stream is not built yet; accept application/json and ask with `after`."
        raise Refused("not_supported", detail, status=406)
    kind = f"events {run_id}"
    start = max(after, paging.integer(kind) or 0)
    async with services.database.read() as connection:
        found = await list_events(connection, tenant, run_id, limit=paging.fetch, after=start)
        if not found:
            await require_run(connection, tenant, run_id)
    return EventPage(**paging.page(kind, found, lambda event: event.seq, lambda event: event_of(event, run_id)))
