"""LangGraph with its PostgreSQL saver: plan, then waves of Send per ready task, as its own plan-and-execute examples.

A pool of 20 autocommit connections as its documentation has it. The variant is its `durability`: "sync" stores a wave
before the next begins, "async" (its default) while the next runs.
"""

import os
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypedDict

os.environ.update(LANGSMITH_TRACING="false", LANGCHAIN_TRACING_V2="false")  # before it is imported

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver  # type: ignore[import-not-found]
from langgraph.graph import END, START, StateGraph  # type: ignore[import-not-found]
from langgraph.types import Send  # type: ignore[import-not-found]
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from benchmarks.compare.peers.peer import Json, Model, Setup, Task, Walk, model_of, serve


def merged(results: Mapping[str, str] | None, more: Mapping[str, str]) -> Mapping[str, str]:
    return {**(results or {}), **more}


class State(TypedDict):
    plan: str
    tasks: Sequence[Task]
    results: Annotated[Mapping[str, str], merged]


def built(model: Model, saver: Any) -> Any:
    async def draw(state: State) -> Json:
        return {"tasks": await model.plan(state["plan"]), "results": {}}

    async def task(sent: Json) -> Json:
        return {"results": {sent["id"]: await model.task(sent["plan"], sent["description"], sent["results"])}}

    async def wave(_: State) -> Json:
        return {}

    def ready(state: State) -> Any:
        results = state.get("results") or {}
        return [
            Send(
                "task",
                {
                    "plan": state["plan"],
                    "id": task["id"],
                    "description": task["description"],
                    "results": {d: results[d] for d in task["depends_on"]},
                },
            )
            for task in state["tasks"]
            if task["id"] not in results and all(d in results for d in task["depends_on"])
        ] or END

    graph = StateGraph(State)
    for name, node in (("draw", draw), ("task", task), ("wave", wave)):
        graph.add_node(name, node)
    graph.add_edge(START, "draw")
    graph.add_conditional_edges("draw", ready, ["task", END])
    graph.add_edge("task", "wave")
    graph.add_conditional_edges("wave", ready, ["task", END])
    return graph.compile(checkpointer=saver)


@asynccontextmanager
async def opened(setup: Setup) -> AsyncIterator[Walk]:
    settings = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    async with (
        model_of(setup) as model,
        AsyncConnectionPool(setup.database_url, min_size=20, max_size=20, kwargs=settings) as pool,
    ):
        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        graph = built(model, saver)

        async def walk(plan: str) -> None:
            config = {"configurable": {"thread_id": str(uuid.uuid4())}, "recursion_limit": 10_000}
            await graph.ainvoke({"plan": plan}, config, durability=setup.variant)

        yield walk


if __name__ == "__main__":
    serve(opened, "langgraph", "langgraph-checkpoint-postgres")
