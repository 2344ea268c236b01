"""What the routes work with, and how a route gets it."""

import asyncio
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from app.api.intake import Intake
from app.api.watch import RunWatch
from app.domain.ids import DEFAULT_TENANT, TenantId
from app.settings import Settings
from app.storage.database import Database
from app.tools.toolbox import Toolbox


@dataclass(frozen=True, kw_only=True, slots=True)
class Services:
    """Wired parts. Set `draining` at shutdown: readiness turns to 503 and long polls are answered."""

    database: Database
    settings: Settings
    watch: RunWatch
    toolbox: Toolbox = field(default_factory=Toolbox)
    intake: Intake = field(init=False)
    draining: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        object.__setattr__(self, "intake", Intake(self.database))


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def _tenant() -> TenantId:
    # Until keys exist there is one tenant.
    return DEFAULT_TENANT


Wired = Annotated[Services, Depends(_services)]
Tenant = Annotated[TenantId, Depends(_tenant)]
