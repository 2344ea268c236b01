"""procrastinate: one job per task; a task's result, its dependents' counts and the ready ones' jobs commit as one.

The worker runs in this process: 100 jobs at once, LISTEN/NOTIFY on, succeeded jobs deleted, a pool of 20 connections.
"""

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import procrastinate  # type: ignore[import-not-found]

from benchmarks.compare.peers.peer import Setup, Walk, model_of, serve

_TABLES = """
create table bench_runs (id text primary key, plan text, left_over int);
create table bench_tasks (
  run text, id text, description text, depends_on jsonb, dependents jsonb, pending int, result text,
  primary key (run, id)
)"""
_READ = """
select t.description, t.dependents, r.plan,
  (select coalesce(json_object_agg(d.id, d.result), '{}') from bench_tasks d
    where d.run = t.run and d.id in (select jsonb_array_elements_text(t.depends_on))) as results
from bench_tasks t join bench_runs r on r.id = t.run where t.run = %s and t.id = %s"""
_STORE = "update bench_tasks set result = %s where run = %s and id = %s"
_COUNT_DOWN = """
with due as (select id from bench_tasks where run = %s and id = any(%s) order by id for update)
update bench_tasks t set pending = pending - 1 from due where t.run = %s and t.id = due.id returning t.id, t.pending"""
_LEFT_OVER = "update bench_runs set left_over = left_over - 1 where id = %s returning left_over"
_COPY = "copy bench_tasks (run, id, description, depends_on, dependents, pending) from stdin"


@asynccontextmanager
async def opened(setup: Setup) -> AsyncIterator[Walk]:
    logging.getLogger("procrastinate").setLevel(logging.ERROR)
    app = procrastinate.App(
        connector=procrastinate.PsycopgConnector(conninfo=setup.database_url, min_size=20, max_size=20)
    )
    ended: dict[str, asyncio.Event] = {}
    async with model_of(setup) as model, app.open_async():

        async def defer(connection: Any, run: str, ids: list[str]) -> None:
            if ids:
                await do_task.configure(connection=connection).batch_defer_async(*({"run": run, "id": i} for i in ids))

        async def draw(run: str, plan: str) -> None:
            tasks = await model.plan(plan)
            dependents: dict[str, list[str]] = {task["id"]: [] for task in tasks}
            for task in tasks:
                for d in task["depends_on"]:
                    dependents[d].append(task["id"])
            async with app.connector.pool.connection() as connection, connection.transaction():
                await connection.execute("insert into bench_runs values (%s, %s, %s)", (run, plan, len(tasks)))
                async with connection.cursor() as cursor, cursor.copy(_COPY) as copy:
                    for task in tasks:
                        needs, i = task["depends_on"], task["id"]
                        lists = json.dumps(needs), json.dumps(dependents[i])
                        await copy.write_row((run, i, task["description"], *lists, len(needs)))
                await defer(connection, run, [task["id"] for task in tasks if not task["depends_on"]])

        async def do(run: str, id: str) -> None:  # noqa: A002 - the job's argument
            async with app.connector.pool.connection() as connection:
                row = await (await connection.execute(_READ, (run, id))).fetchone()
            description, dependents, plan, results = row
            result = await model.task(plan, description, results)
            async with app.connector.pool.connection() as connection, connection.transaction():
                await connection.execute(_STORE, (result, run, id))
                if dependents:
                    counted = await connection.execute(_COUNT_DOWN, (run, dependents, run))
                    await defer(connection, run, [i for i, pending in await counted.fetchall() if not pending])
                (left,) = await (await connection.execute(_LEFT_OVER, (run,))).fetchone()
            if not left:
                ended[run].set()

        draw_plan = app.task(name="draw")(draw)
        do_task = app.task(name="do")(do)
        await app.schema_manager.apply_schema_async()
        async with app.connector.pool.connection() as connection:
            await connection.execute(_TABLES)

        async def walk(plan: str) -> None:
            run = str(uuid.uuid4())
            ended[run] = asyncio.Event()
            await draw_plan.defer_async(run=run, plan=plan)
            await ended[run].wait()

        worker = asyncio.create_task(
            app.run_worker_async(
                concurrency=100, wait=True, listen_notify=True, delete_jobs="successful", install_signal_handlers=False
            )
        )
        try:
            yield walk
        finally:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)


if __name__ == "__main__":
    serve(opened, "procrastinate")
