"""The API put together: an app with its documentation, and everything that `install` adds to it."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from app import __version__
from app.api import events, goals, health, plans, reviews, runs, steering, tasks, tools
from app.api.envelope import Envelope
from app.api.openapi import DESCRIPTION, TITLE, document
from app.api.problems import Refused, answer_error
from app.api.services import Services
from app.domain.errors import StorageUnavailable

_ROUTERS = tuple(noun.router for noun in (goals, runs, steering, plans, tasks, reviews, events, tools, health))
_ROUTES = [route for router in _ROUTERS for route in router.routes if isinstance(route, APIRoute)]


def create_api(
    services: Services, lifespan: Callable[[FastAPI], AbstractAsyncContextManager[Any]] | None = None
) -> FastAPI:
    """An app with the API and `/docs`, whose assets come with it: it works without the internet."""
    app: FastAPI = FastAPIOffline(
        title=TITLE, version=__version__, description=DESCRIPTION, redoc_url=None, lifespan=lifespan
    )
    install(app, services)
    return app


def install(app: FastAPI, services: Services) -> None:
    """Add the routes, the problems and the envelope to an app that has not started."""
    app.state.services = services
    app.router.redirect_slashes = False
    for router in _ROUTERS:
        app.include_router(router)
    app.add_api_route("/", _to_docs, include_in_schema=False)
    for raised in (Refused, StorageUnavailable, RequestValidationError, HTTPException):
        app.add_exception_handler(raised, answer_error)
    app.add_exception_handler(405, _answer_wrong_method)
    app.add_middleware(Envelope)
    # FastAPI's documented way to extend the document.
    app.openapi = document(app, _ROUTES)  # type: ignore[method-assign]


async def _answer_wrong_method(request: Request, error: Exception) -> Response:
    """A 405 that names every method of the path; the framework names those of the first route only."""
    path = request.scope["path"]
    allowed = {method for route in _ROUTES if route.path_regex.match(path) for method in route.methods or ()}
    headers = {"Allow": ", ".join(sorted(allowed or {"GET"}))}
    return await answer_error(request, HTTPException(405, headers=headers))


async def _to_docs(request: Request) -> RedirectResponse:
    return RedirectResponse(f"{request.scope.get('root_path', '')}/docs")
