"""Tools take none of the model's places: whoever waits for one does not wait for another's tools."""

from app.storage.database import Database
from tests.engine.acting_runs import Shop, look
from tests.engine.conftest import Engine
from tests.engine.recording_tools import Held
from tests.scripted_model import script, text
from tests.scripted_tools import calls, steps


async def test_a_task_is_asked_about_while_the_tools_of_others_are_called(engine: Engine, database: Database) -> None:
    shop = Shop(engine)
    held = Held()
    shop.look.does = held
    engine.model.begin(
        script(
            {
                ("executor", "a"): steps(calls(look("x")), text("a is done")),
                ("executor", "b"): steps(calls(look("y")), text("b is done")),
            }
        )
    )
    shop.worker(llm_max_concurrency=1)
    run_id = await shop.run({"a": [], "b": [], "c": [], "d": []})
    await engine.model.until(lambda: len(engine.model.calls) == 4)
    held.gate.set()
    assert (await engine.ended(run_id)).status == "succeeded"
