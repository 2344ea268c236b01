"""The endpoint of the model client's tests."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from app.llm.openai_model import OpenAIModel
from tests.endpoint import Endpoint, model_at
from tests.scripted_model import ScriptedModel, text


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[tuple[ScriptedModel, OpenAIModel]]:
    """One server and one model for all tests: making a TLS context takes longer than most exchanges."""
    async with ScriptedModel(lambda _: text("x")) as server, model_at(server.url) as model:
        yield server, model


@pytest.fixture
def endpoint(shared: tuple[ScriptedModel, OpenAIModel], request: pytest.FixtureRequest) -> Endpoint:
    server, model = shared
    server.begin(lambda _: text("x"))
    return Endpoint(server, model, request.node.name)
