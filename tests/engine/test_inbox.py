"""The inbox: everything that came, as soon as anything has, and a time to look again."""

import asyncio

import pytest

from app.engine.inbox import Inbox

FOR_EVER = 60.0


async def settled() -> None:
    """Let everything that can go on go on."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_all_that_has_come_is_taken_at_once_in_order() -> None:
    inbox = Inbox[str]()
    for item in "abc":
        inbox.put(item)
    assert await inbox.take(within_seconds=FOR_EVER) == ["a", "b", "c"]


async def test_what_comes_while_one_waits_is_taken() -> None:
    inbox = Inbox[str]()
    taking = asyncio.create_task(inbox.take(within_seconds=None))
    await settled()
    assert not taking.done()
    inbox.put("a")
    inbox.put("b")
    assert await taking == ["a", "b"]


async def test_nothing_is_taken_twice() -> None:
    inbox = Inbox[str]()
    inbox.put("a")
    assert await inbox.take(within_seconds=FOR_EVER) == ["a"]
    assert await inbox.take(within_seconds=0) == []


async def test_a_nudge_wakes_with_nothing_in_hand() -> None:
    inbox = Inbox[str]()
    taking = asyncio.create_task(inbox.take(within_seconds=None))
    await settled()
    inbox.nudge()
    assert await taking == []


async def test_a_nudge_before_one_waits_is_not_lost() -> None:
    inbox = Inbox[str]()
    inbox.nudge()
    assert await inbox.take(within_seconds=None) == []


@pytest.mark.parametrize("seconds", [-5.0, 0.0, 0.01])
async def test_when_the_time_has_passed_nothing_is_taken(seconds: float) -> None:
    assert await Inbox[str]().take(within_seconds=seconds) == []


async def test_a_time_that_has_not_passed_wakes_nobody_later() -> None:
    inbox = Inbox[str]()
    inbox.put("a")
    await inbox.take(within_seconds=0.01)
    taking = asyncio.create_task(inbox.take(within_seconds=None))
    await asyncio.sleep(0.05)  # past the first one's time
    assert not taking.done()
    inbox.put("b")
    assert await taking == ["b"]


async def test_what_has_come_outlives_a_cancelled_taking() -> None:
    inbox = Inbox[str]()
    taking = asyncio.create_task(inbox.take(within_seconds=None))
    await settled()
    inbox.put("a")
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert await inbox.take(within_seconds=FOR_EVER) == ["a"]
