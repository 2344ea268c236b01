"""Routes on tools: what tasks can call."""

from fastapi import APIRouter

from app.api import examples
from app.api.openapi import answer, problems
from app.api.pages import Paging
from app.api.schemas.answers import ToolPage
from app.api.services import Wired
from app.api.showing import tool_of

router = APIRouter(tags=["tools"])

_KIND = "tools"


@router.get(
    "/tools",
    operation_id="listTools",
    summary="Tools that a goal may be given",
    responses={
        200: answer("Tools.", examples.page_of(examples.TOOL)),
        **problems("invalid_request", "invalid_cursor"),
    },
)
async def list_all_tools(services: Wired, paging: Paging) -> ToolPage:
    """By name, as they are now: servers that tools come from may be away for a while.

    No run uses a tool unless its goal names it in `options.tools`, or its client's own plan names it for a task.
    """
    after = paging.text(_KIND) or ""
    found = [spec for spec in services.toolbox.specs if spec.name > after]
    return ToolPage(**paging.page(_KIND, found[: paging.fetch], lambda spec: spec.name, tool_of))
