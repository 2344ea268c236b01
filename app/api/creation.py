"""Making a run once: its idempotency key, its transaction, and the answer to who asked for it."""

import hashlib
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Header, Request
from pydantic import WithJsonSchema
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from app.api.conditions import RETRY_AFTER_SECONDS
from app.api.problems import Fault, Refused
from app.api.runs import is_finished, no_such_run, until
from app.api.services import Services
from app.api.showing import answer_shown, run_of
from app.domain.ids import TenantId
from app.domain.status import FINISHED
from app.storage.faults import tried_again
from app.storage.idempotency import KeyBusy, KeyTaken, find_key, keep_key
from app.storage.records import RunRecord
from app.storage.runs import get_run

_PRINTABLE = re.compile(r"[ -~]{1,255}")

KeyHeader = Annotated[
    str | None,
    # HTTP takes the spaces around a header's value away.
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]([ -~]*[!-~])?$"}),
    Header(
        alias="Idempotency-Key",
        description="1..255 printable ASCII characters. The same key with the same body makes one run, for 72 hours.",
        examples=["8e03978e-40d5-43dd-bc93-6894a57f9324"],
    ),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """A client's idempotency key on one route, and the hash of the body it came with."""

    route: str
    key: str
    request_hash: str


def key_of(header: str | None, route: str, sent: dict[str, Any]) -> Key | None:
    """The key of this request, if it has one; raises `Refused` when it is unusable. `sent` is the parsed body."""
    if header is None:
        return None
    if not _PRINTABLE.fullmatch(header):
        message = "An Idempotency-Key has 1 to 255 printable ASCII characters."
        fault = Fault(code="invalid_idempotency_key", message=message, header="Idempotency-Key")
        raise Refused("invalid_idempotency_key", message, errors=[fault])
    canonical = json.dumps(sent, sort_keys=True, separators=(",", ":")).encode()
    return Key(route=route, key=header, request_hash=hashlib.sha256(canonical).hexdigest())


@tried_again
async def make_once(
    services: Services, tenant: TenantId, key: Key | None, make: Callable[[AsyncConnection], Awaitable[RunRecord]]
) -> tuple[RunRecord, bool]:
    """Have `make` write a run in one transaction with its key; the run, and whether an earlier request had made it."""
    for _ in range(2):  # who loses the race for a key finds it bound the second time
        try:
            async with services.database.write() as connection:
                if key is not None:
                    earlier = await _made_earlier(connection, tenant, key)
                    if earlier is not None:
                        return earlier, True
                run = await make(connection)
                if key is not None:
                    await keep_key(
                        connection,
                        tenant,
                        route=key.route,
                        key=key.key,
                        request_hash=key.request_hash,
                        run_id=run.id,
                    )
                await services.database.announce(connection, run.id)
                return run, False
        except KeyTaken:
            continue
        except KeyBusy:
            break
    detail = "A request with this Idempotency-Key is still being worked on; try again shortly."
    raise Refused("idempotency_in_progress", detail, headers={"Retry-After": RETRY_AFTER_SECONDS})


async def made_earlier(services: Services, tenant: TenantId, key: Key | None) -> RunRecord | None:
    """The run that a request with this key has made, whatever would be said of that request now."""
    if key is None:
        return None
    async with services.database.read() as connection:
        return await _made_earlier(connection, tenant, key)


async def answer_made(
    request: Request, services: Services, run: RunRecord, *, replayed: bool, wait: int | None
) -> Response:
    """202 with the run, or 200 when the client waits and it finishes in time."""
    if wait and run.status not in FINISHED:
        await until(services, request, run.tenant_id, run.id, is_finished, seconds=wait)
        async with services.database.read() as connection:
            now = await get_run(connection, run.tenant_id, run.id, with_context=False)
        if now is None:
            raise no_such_run()
        run = now
    headers = {"Location": f"/runs/{run.id}"}
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    if wait is not None:
        headers["Preference-Applied"] = f"wait={wait}"
    finished = run.status in FINISHED
    if not finished:
        headers["Retry-After"] = RETRY_AFTER_SECONDS
    return answer_shown(run_of(run), 200 if finished and wait is not None else 202, headers)


async def _made_earlier(connection: AsyncConnection, tenant: TenantId, key: Key) -> RunRecord | None:
    found = await find_key(connection, tenant, route=key.route, key=key.key)
    if found is None:
        return None
    request_hash, run_id = found
    if request_hash != key.request_hash:
        message = "This Idempotency-Key was used with another body; take a new key."
        fault = Fault(code="idempotency_key_reused", message=message, header="Idempotency-Key")
        raise Refused("idempotency_key_reused", message, errors=[fault])
    run = await get_run(connection, tenant, run_id, with_context=False)
    if run is None:
        raise Refused("run_deleted", "The run made with this Idempotency-Key was deleted; take a new key.")
    return run
