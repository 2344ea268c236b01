"""The API and the worker as processes of their own, meeting in the database."""

from tests.scripted_model import ScriptedModel, hang, script
from tests.service_process import StartProcess, finished, start_run


async def test_a_worker_of_its_own_runs_what_the_api_took(
    start_process: StartProcess, scripted_model: ScriptedModel
) -> None:
    api = await start_process("serve", "--no-worker")
    async with api.client() as client:
        run = await start_run(client)
        assert run["status"] == "queued"
        await start_process("worker")
        assert (await finished(client, run["id"]))["result"] == "the answer"


async def test_a_cancel_reaches_calls_in_flight_in_another_process(
    start_process: StartProcess, scripted_model: ScriptedModel
) -> None:
    scripted_model.begin(script({"executor": hang()}))
    api = await start_process("serve", "--no-worker")
    await start_process("worker")
    async with api.client() as client:
        run = await start_run(client)
        await scripted_model.until(lambda: "0.a" in scripted_model.order())
        await client.post(f"/runs/{run['id']}/cancel")
        await scripted_model.until(lambda: scripted_model.calls_for("0.a")[0].disconnected)
        assert (await finished(client, run["id"]))["status"] == "cancelled"
