"""How a model's endpoint and its answers go wrong, and what must become of a run that meets it at each seat.

Faults go by numbers, which group them: 1-4 rate limits, 5-8 errors of servers, 9-12 broken connections, 13-15 stalls,
16-18 refused requests, 19-22 answers without content, 23-25 declined and cut answers, 26-27 bodies that are no answer,
28 tools called unasked, 29 wrong usage, 30 odd characters, 31-32 plans and new plans that are none, 34 other answers
than those asked for. 33, a loop of tool calls, has no place here before there are tools.
"""

import gzip
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.scripted_model import Call, Plan, Reply, error, hang, raw, reset, tasks_of, text, verbatim, wire

SEATS = ("planner", "executor", "recovery", "synthesizer")
PLAN: Plan = {"a": [], "b": ["a"]}
REWORDED = "Do b in another way."
BEGUN = "half a senten"
JSON_TYPE = {"Content-Type": "application/json"}

Script = Callable[[Call], Reply]
"""A reply that depends on the call."""


@dataclass(frozen=True, kw_only=True)
class End:
    """How a run ends: with this error, or well; after so many calls of the seat, in so many attempts at its task."""

    calls: int
    code: str | None = None
    attempts: int = 1


Ends = Mapping[str, End]
"""By seat."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What the endpoint does, and how runs end: those that meet each reply once, in turn, and those that meet no other.

    `once` is None where that ends as `always` does.
    """

    replies: Sequence[Reply | Script]
    always: Ends
    once: Ends | None = None
    begins: str = ""
    """What stands before the next call's words in the result: an answer that was cut off is gone on with."""

    @property
    def ways(self) -> dict[str, Ends]:
        """The ends by how often the fault is met."""
        return {"always": self.always} if self.once is None else {"once": self.once, "always": self.always}

    def met(self, call: Call, how: str) -> Reply | None:
        """What the call meets; None when the fault is over."""
        if how == "once" and call.turn >= len(self.replies):
            return None
        reply = self.replies[call.turn % len(self.replies)]
        return reply if isinstance(reply, Reply) else reply(call)


def of_seats(planner: End, executor: End, recovery: End, synthesizer: End) -> Ends:
    return dict(zip(SEATS, (planner, executor, recovery, synthesizer), strict=True))


def well_after(count: int) -> Ends:
    """Well, once so many replies have been met."""
    return dict.fromkeys(SEATS, End(calls=count + 1))


def passing(*replies: Reply) -> Fault:
    """The endpoint's trouble, not the answer's: eight tries, no attempt, and then no more of this endpoint."""
    always = dict.fromkeys(SEATS, End(calls=8, code="llm_unavailable"))
    return Fault(replies=replies, once=well_after(len(replies)), always=always)


def stalling(reply: Reply) -> Fault:
    """Cut at a time limit: a spoiled attempt of a task, and the endpoint's trouble anywhere else."""
    return Fault(
        replies=[reply],
        once={**well_after(1), "executor": End(calls=2, attempts=2)},
        always={**passing(reply).always, "executor": End(calls=3, code="task_failed", attempts=3)},
    )


def unauthorized(reply: Reply) -> Fault:
    """Nobody with this key is served, so nothing is asked again."""
    return Fault(replies=[reply], always=dict.fromkeys(SEATS, End(calls=1, code="llm_auth_failed")))


def given_up(calls: int, *, asking_for_json: int | None = None) -> Ends:
    """Given up after so many calls; planner and recovery, who ask for JSON, may try simpler ways of asking first."""
    return of_seats(
        End(calls=asking_for_json or calls, code="llm_unavailable"),
        End(calls=calls, code="task_failed"),
        End(calls=asking_for_json or calls, code="task_failed"),
        End(calls=calls, code="synthesis_failed"),
    )


def gone(reply: Reply) -> Fault:
    """No such thing there, in whatever form it is asked for."""
    return Fault(replies=[reply], always=given_up(1))


def refused(reply: Reply) -> Fault:
    """The request will not do; where JSON was asked for, that may be why."""
    once = {**given_up(1), "planner": End(calls=2), "recovery": End(calls=2)}
    return Fault(replies=[reply], once=once, always=given_up(1, asking_for_json=3))


def too_long(reply: Reply) -> Fault:
    """The request is longer than the model's context: one shorter one is tried."""
    return Fault(replies=[reply], once=well_after(1), always=given_up(2))


def spoiled(*replies: Reply) -> Fault:
    """Answers of no use, two at most: attempts of a task, re-asks of the other seats."""
    count = len(replies) + 1
    return Fault(
        replies=replies,
        once={**well_after(len(replies)), "executor": End(calls=count, attempts=count)},
        always=of_seats(
            End(calls=3, code="plan_invalid"),
            End(calls=3, code="task_failed", attempts=3),
            End(calls=3, code="replans_exhausted"),
            End(calls=3, code="synthesis_failed"),
        ),
    )


def cut_off(reply: Reply, *, begins: str) -> Fault:
    """Cut at the length limit: plain text is gone on with, once for each attempt or re-ask."""
    return Fault(
        replies=[reply],
        begins=begins,
        once=well_after(1),
        always={
            **spoiled(reply).always,
            "executor": End(calls=6, code="task_failed", attempts=3),
            "synthesizer": End(calls=6, code="synthesis_failed"),
        },
    )


def declined(reply: Reply) -> Fault:
    """The model, or what stands guard over it, will not answer: not asked again."""
    return Fault(replies=[reply], always={**given_up(1), "planner": End(calls=1, code="plan_refused")})


def harmless(reply: Script) -> Fault:
    """The answer is taken all the same."""
    return Fault(replies=[reply], always=well_after(0))


def well_said(call: Call) -> str:
    """A good answer of the seat."""
    match call.seat:
        case "planner":
            return json.dumps({"tasks": tasks_of(PLAN)})
        case "recovery":
            return json.dumps({"strategy": "retry", "description": REWORDED, "tasks": None, "drop": None})
        case "synthesizer":
            return "the answer"
        case _:
            return f"result of {call.task_key}"


def choice(*, finish_reason: str = "stop", usage: object = None, **message: object) -> Reply:
    """A completion of one choice with these fields of its message."""
    of_choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", **message}}
    counted = {} if usage is None else {"usage": usage}
    return verbatim({"object": "chat.completion", "model": "m", "choices": [of_choice], **counted})


def using(usage: object) -> Script:
    """A good answer that says so of its tokens."""
    return lambda call: choice(content=well_said(call), usage=usage)


def calling(*arguments: str, content: str | None = None) -> Reply:
    """Calls of a tool that was not given, one for each of these arguments."""
    calls = [
        {"id": f"call-{n}", "type": "function", "function": {"name": "launch", "arguments": given}}
        for n, given in enumerate(arguments)
    ]
    return choice(content=content, tool_calls=calls, finish_reason="tool_calls")


FAULTS: Mapping[str, Fault] = {
    "1 too many requests": passing(
        error(429, code="rate_limit_exceeded"),
        error(429, headers={"Retry-After": "0"}),
        error(429, headers={"Retry-After": "-1 soon"}),
    ),
    "2 too many requests until a date in the past": passing(
        error(429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})
    ),
    "4 a limit to be reset in no time": passing(
        error(429, headers={"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1ms"})
    ),
    "5 internal error": passing(error(500)),
    "6 page of a gateway": passing(raw(b"<html>Bad gateway</html>", status=502, headers={"Content-Type": "text/html"})),
    "7 unavailable": passing(error(503)),
    "8 overloaded": passing(error(529), error(408), error(409), error(425)),
    "12 connection broken": passing(reset(), text("cut off").cut(body_bytes=30), wire(b"220 ready\r\n\r\n"), wire(b"")),
    "16 context too short": too_long(error(400, code="context_length_exceeded")),
    "17 no such key": unauthorized(error(401)),
    "17 not with this key": unauthorized(error(403)),
    "17 no such key, in a 200": unauthorized(verbatim({"error": {"message": "no such key", "code": 401}})),
    "18 no such model": gone(error(404, code="model_not_found")),
    "18 moved": gone(raw(b"", status=302, headers={"Location": "http://127.0.0.1:9/"})),
    "18 bad request": refused(error(400)),
    "18 request not understood": refused(error(422)),
    "19 truncated JSON": passing(raw(b'{"id": "chatcmpl-1", "choices": [{"ind', headers=JSON_TYPE)),
    "20 empty body": passing(raw(b"", headers=JSON_TYPE), raw(b"", status=204)),
    "21 no choices": passing(
        verbatim({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": []}),
        verbatim({"choices": [None]}),
        verbatim([]),
        verbatim({"error": {"message": "upstream is away", "code": 502}}),
    ),
    "22 content is null": spoiled(choice(content=None), text("")),
    "22 content is blank": spoiled(text(" \n\t"), choice(content=7)),
    "23 refusal": declined(choice(content=None, refusal="I will not.")),
    "23 refusal beside an answer": declined(choice(content="Well, then.", refusal="I will not.")),
    "24 cut off by length": cut_off(text(BEGUN, finish_reason="length"), begins=BEGUN),
    "24 cut off by length before a word": spoiled(text("", finish_reason="length")),
    "25 content filter": declined(text("half of", finish_reason="content_filter")),
    "26 page in a 200": passing(
        raw(b"<html>Welcome</html>", headers={"Content-Type": "text/html"}),
        raw(b'data: {"choices": []}\n\ndata: [DONE]\n\n', headers={"Content-Type": "text/event-stream"}),
        raw(b"data: {}\n\ndata: [DONE]\n\n", headers=JSON_TYPE),
    ),
    "27 a little that swells to much": passing(
        raw(gzip.compress(bytes(50 * 2**20)), headers={**JSON_TYPE, "Content-Encoding": "gzip"}),
        raw(gzip.compress(b"{}"), headers=JSON_TYPE),
    ),
    "27 larger than any answer": passing(
        raw(b" " * 5 * 2**20, headers=JSON_TYPE), raw(b"[" * 200_000, headers=JSON_TYPE)
    ),
    "28 tool call": spoiled(calling("{}"), calling('{"at": ')),
    "28 a thousand tool calls beside an answer": spoiled(
        calling(*["{}"] * 1_000, content="Launching."),
        choice(content=None, function_call={"name": "launch", "arguments": "{}"}),
    ),
    "29 usage is missing": harmless(using(None)),
    "29 usage is negative": harmless(using({"prompt_tokens": -10_000, "completion_tokens": -5, "total_tokens": -1})),
    "29 usage is huge": harmless(using({"prompt_tokens": 2**62, "completion_tokens": 10**400})),
    "29 usage is as large as is believed": harmless(using({"prompt_tokens": 10**7, "completion_tokens": 10**7})),
    "29 usage is no number": harmless(using({"prompt_tokens": "ten", "completion_tokens": 1.5, "total_tokens": True})),
    "29 usage is no object": harmless(using([10, 5])),
}

STALLS: Mapping[str, Fault] = {
    "13 no answer": stalling(hang()),
    "14 no more after half the body": stalling(text("half of it").stalled(body_bytes=40)),
    "15 byte by byte": stalling(text("x" * 1_000).dripping(0.1)),
}


def staged(fault: Fault) -> Script:
    """Meets runs of the goal `goal_at(seat, how)` with the fault there; all else is answered well.

    A task `b` whose run is to reach the recovery seat answers 400 to its first wording.
    """

    def script(call: Call) -> Reply:
        ((seat, how),) = set(re.findall(r"Meet it at the (\w+), (\w+)", call.text))
        is_there = call.seat == seat and call.task_id in (None, "b")
        if is_there and (reply := fault.met(call, how)) is not None:
            return reply
        if seat == "recovery" and call.messages[-1]["content"].endswith("Do b."):
            return error(400)
        return text(well_said(call))

    return script


def goal_at(seat: str, how: str) -> str:
    """The goal of a run that meets its fault at this seat."""
    return f"Meet it at the {seat}, {how}"
