"""Whether the process lives and whether it can work."""

import asyncio

from fastapi import APIRouter

from app.api.openapi import answer, problems
from app.api.problems import Refused
from app.api.schemas.answers import Health
from app.api.services import Wired
from app.domain.errors import StorageUnavailable

router = APIRouter(tags=["health"])
_PING_SECONDS = 3


@router.get(
    "/healthz",
    operation_id="getHealth",
    summary="Whether the process answers",
    responses={200: answer("It does.", {"status": "ok"}), **problems()},
)
async def get_health() -> Health:
    """Asks nothing of the database: a process that answers need not be started again."""
    return Health(status="ok")


@router.get(
    "/readyz",
    operation_id="getReadiness",
    summary="Whether requests can be served",
    responses={200: answer("They can.", {"status": "ready"}), **problems("draining")},
)
async def get_readiness(services: Wired) -> Health:
    """503 while the database is away or full, and from the moment the service begins to shut down."""
    if services.draining.is_set():
        raise Refused("draining", "The service is shutting down; ask another one.", headers={"Retry-After": "1"})
    try:
        async with asyncio.timeout(_PING_SECONDS):
            await services.database.ping()
    except TimeoutError:
        raise StorageUnavailable("The database does not answer.") from None
    return Health(status="ready")
