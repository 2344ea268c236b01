"""The trials: sound plans, faulty plans, broken JSON and recorded answers, each with what must be true of it."""

import asyncio
import itertools
import json
import uuid
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

from benchmarks.cases import corpora
from benchmarks.cases.corpora import AnswerCase, PlanCase
from benchmarks.cases.rig import Rig, Section, Trial
from tests.scripted_model import Call, Reply, plan_reply, script, tasks_of, text
from tests.service_process import Json, tasks_by_key

PLAN_OPTIONS = {"min_tasks": 1, "max_tasks": 10_000, "max_parallel": 16}
PROBLEMS = {
    "duplicate_id",
    "unknown_dependency",
    "self_dependency",
    "cycle",
    "empty",
    "empty_description",
    "invalid_id",
    "too_many_tasks",
    "too_few_tasks",
    "not_json",
    "no_tasks",
}
FORK = {"tasks": tasks_of({"a": [], "b": ["a"], "c": ["a"]})}
MUST_BE_UNDERSTOOD = {"as it is", "fence", "fence without language", "prose around", "bare array", "trailing commas"}

# What an answer of each recorded kind makes of its task. One that is not named here holds both text and a tool call
# that nobody offered: it may be taken or not.
USABLE = ("eos", "stop", "stop_json_object", "finish_reason_empty", "multiple_choices")
REFUSED_OR_SPOILED = ("error_400", "error_404", "function_call", "parallel_tool_calls", "refusal")
ENDPOINT_AT_FAULT = ("not_a_completion", "sse_", "quoted_")


async def _all(section: Section, trials: Iterable[Coroutine[Any, Any, None]]) -> None:
    async def noted(trial: Coroutine[Any, Any, None]) -> None:
        try:
            await trial
        except AssertionError as wrong:  # an answer that the client's requests did not expect
            section.off.append(str(wrong))

    async with asyncio.TaskGroup() as group:
        for trial in trials:
            group.create_task(noted(trial))


# --- sound plans


async def graphs(rig: Rig, cases: Path) -> Section:
    """Every sound plan as the client's own."""
    section = Section(title="sound plans, sent by the client")
    sound = [case for case in corpora.plans(cases) if not case.faults]
    await _all(section, (_walked(rig, section, case, by_planner=False) for case in sound))
    return section


async def planner(rig: Rig, cases: Path) -> Section:
    """Every sound plan of less than 100 tasks as the planner's answer."""
    section = Section(title="sound plans of less than 100 tasks, through the planner")
    small = [case for case in corpora.plans(cases) if not case.faults and len(case.tasks) < 100]
    await _all(section, (_walked(rig, section, case, by_planner=True) for case in small))
    return section


async def _walked(rig: Rig, section: Section, case: PlanCase, *, by_planner: bool) -> None:
    tokens: dict[str, str] = {}

    def result(call: Call) -> Reply:
        token = f"result-of-{call.run_id}-{call.task_key}-{uuid.uuid4().hex};"
        tokens[call.task_key or ""] = token
        return text(token)

    answers = script({"planner": plan_reply(case.plan["tasks"]), "executor": result})
    plan = {} if by_planner else {"plan": case.plan}
    trial = await rig.trial(section, case.name, answers, goal=case.goal, options=PLAN_OPTIONS, **plan)
    if trial is None:
        return
    section.count(case.name.split("/")[0], trial.outcome)
    tasks = await tasks_by_key(rig.client, trial.run["id"])
    shown = (await rig.client.get(f"/runs/{trial.run['id']}/plan")).json()
    section.expect(
        case.name,
        (trial.run["status"] == "succeeded", f"ended {trial.outcome}: {trial.run['error']}"),
        (len(trial.of_seat("planner")) == by_planner, f"{len(trial.of_seat('planner'))} planner calls"),
    )
    _check_tasks(section, case, trial, tasks, tokens)
    _check_shape(section, case, tasks, shown)
    _check_result(section, case, trial, tokens)
    numbers = [event["seq"] for event in await rig.entries(f"/runs/{trial.run['id']}/events")]
    section.expect(case.name, (numbers == list(range(1, len(numbers) + 1)), "its events have gaps"))


def _check_tasks(
    section: Section, case: PlanCase, trial: Trial, tasks: dict[str, Json], tokens: dict[str, str]
) -> None:
    calls = {call.task_id or "": call for call in trial.of_seat("executor")}
    section.expect(
        case.name,
        (calls.keys() == case.dependencies.keys(), "the tasks called are not those of the plan"),
        (len(calls) == len(trial.of_seat("executor")), "a task was called more than once"),
    )
    for task in case.tasks:
        call, needed = calls.get(str(task["id"])), case.dependencies[str(task["id"])]
        if call is None:
            continue
        asked = call.messages[-1]["content"]
        section.expect(
            f"{case.name}, task {task['id']}",
            (all(_answered(calls.get(one), call.arrived_at) for one in needed), "called before its dependencies"),
            (all(tokens.get(f"0.{one}", "never") in call.text for one in needed), "a result is missing"),
            (call.text.count("result-of-") == len(needed), "it was shown results that are not its dependencies'"),
            (asked.endswith(task["description"]), f"the request ends with {asked[-80:]!r}"),
            (tasks[f"0.{task['id']}"]["result"] == tokens.get(f"0.{task['id']}"), "another result is stored"),
            (tasks[f"0.{task['id']}"]["status"] == "succeeded", "its status is not succeeded"),
        )


def _answered(call: Call | None, before: float) -> bool:
    return call is not None and call.answered_at is not None and call.answered_at <= before


def _check_shape(section: Section, case: PlanCase, tasks: dict[str, Json], shown: Json) -> None:
    waves = {key: task["wave"] for key, task in tasks.items()}
    by_wave = [{key for key, wave in waves.items() if wave == n} for n in range(1, max(waves.values(), default=0) + 1)]
    path = shown["critical_path"]
    edges = itertools.pairwise(path)
    section.expect(
        case.name,
        (waves == {f"0.{task}": wave for task, wave in case.waves.items()}, "waves are not the longest-path depth"),
        ([set(wave) for wave in shown["waves"]] == by_wave, "the plan's waves are not those of its tasks"),
        (len(path) == max(case.waves.values()), "the critical path is not the longest"),
        (all(one in tasks[two]["depends_on"] for one, two in edges), "the critical path is no path"),
        (
            {key: set(task["depends_on"]) for key, task in tasks.items()}
            == {f"0.{task}": {f"0.{one}" for one in needed} for task, needed in case.dependencies.items()},
            "other dependencies are stored",
        ),
    )


def _check_result(section: Section, case: PlanCase, trial: Trial, tokens: dict[str, str]) -> None:
    synthesis = trial.of_seat("synthesizer")
    if len(case.tasks) == 1:
        right = not synthesis and trial.run["result"] == next(iter(tokens.values()), None)
        section.expect(case.name, (right, "the result of a single task is not the run's"))
        return
    section.expect(case.name, (len(synthesis) == 1, f"{len(synthesis)} synthesizer calls"))
    if synthesis:
        given = {task for task, token in tokens.items() if token in synthesis[0].text}
        section.expect(
            case.name,
            (given == {f"0.{task}" for task in case.sinks}, "the synthesis was not given the last tasks' results"),
            (trial.run["result"] == "the answer", "the result is not the synthesizer's"),
        )


# --- faulty plans


async def faulty(rig: Rig, cases: Path) -> Section:
    """Every faulty plan from both sides."""
    section = Section(title="faulty plans, sent by the client and through the planner")
    found = [case for case in corpora.plans(cases) if case.faults]
    await _all(section, (trial(rig, section, case) for case in found for trial in (_refused, _rejected)))
    return section


async def _refused(rig: Rig, section: Section, case: PlanCase) -> None:
    section.cases += 1
    response, _ = await rig.post(script(), goal=case.goal, plan=case.plan)
    problem = response.json()
    section.count("from the client", f"{response.status_code} {problem.get('code')}")
    section.expect(
        f"{case.name}, from the client",
        ((response.status_code, problem.get("code")) == (422, "plan_invalid"), f"{response.status_code}"),
        *_right_problems(case, problem.get("errors", [])),
    )


async def _rejected(rig: Rig, section: Section, case: PlanCase) -> None:
    answers = script({"planner": plan_reply(case.plan["tasks"])})
    trial = await rig.trial(section, case.name, answers, goal=case.goal, options=PLAN_OPTIONS)
    if trial is None:
        return
    section.count("from the planner", trial.outcome)
    rejections = await rig.rejections(trial)
    section.expect(
        f"{case.name}, from the planner",
        (trial.outcome == "failed plan_invalid", f"ended {trial.outcome}"),
        ([call.seat for call in trial.calls] == ["planner"] * 3, f"calls: {[call.seat for call in trial.calls]}"),
        (len(rejections) == 3, f"{len(rejections)} rejections"),
        *(claim for problems in rejections for claim in _right_problems(case, problems)),
    )


def _right_problems(case: PlanCase, problems: list[Json]) -> list[tuple[bool, str]]:
    codes, expected = {problem["code"] for problem in problems}, {code for code, _ in case.faults}
    return [
        (codes == expected, f"problems {codes}, expected {expected}"),
        *(
            (
                any(problem["code"] == code and task in problem["message"] for problem in problems),
                f"no problem {code} names '{task}'",
            )
            for code, task in case.faults
        ),
    ]


# --- answers that are broken


async def malformed(rig: Rig, cases: Path) -> Section:
    """Every broken text as the planner's answer, and sound plans broken in the same ways."""
    section = Section(title="broken JSON as the planner's answer")
    sound = [case for case in corpora.plans(cases) if not case.faults and 2 <= len(case.tasks) < 30][::30]
    await _all(
        section,
        [
            *(_broken(rig, section, case) for case in corpora.broken_json(cases)),
            *(
                _damaged(rig, section, case, way, damaged, whole=whole)
                for case in sound
                for way, (damaged, whole) in corpora.damaged(case.plan).items()
            ),
        ],
    )
    return section


async def _broken(rig: Rig, section: Section, case: AnswerCase) -> None:
    trial = await rig.trial(section, case.name, script({"planner": case.reply}), goal="Plan this")
    if trial is None:
        return
    rejections = await rig.rejections(trial)
    codes = {problem["code"] for problems in rejections for problem in problems}
    section.count(case.kind, f"{trial.outcome} ({', '.join(sorted(codes)) or 'not read'})")
    # Bytes that are no UTF-8 may count as an endpoint at fault instead.
    right = {"failed plan_invalid"} | ({"failed llm_unavailable"} if case.kind == "no UTF-8" else set())
    section.expect(
        f"{case.kind} {case.name}",
        (trial.outcome in right, f"ended {trial.outcome}"),
        (codes <= PROBLEMS, f"unknown problems {codes - PROBLEMS}"),
        (not trial.of_seat("executor"), "a task was called"),
        (bool(codes) or "unavailable" in trial.outcome, "no problem is named"),
    )
    if case.kind == "valid" and _is_object(case.reply):
        section.expect(f"{case.kind} {case.name}", (codes == {"no_tasks"}, f"problems {codes} for a JSON object"))


def _is_object(reply: Reply) -> bool:
    """Whether the answer is a JSON object that says nothing twice."""
    repeated: list[object] = []

    def read(pairs: list[tuple[str, object]]) -> dict[str, object]:
        repeated.extend(pairs[len(dict(pairs)) :])
        return dict(pairs)

    try:
        content = json.loads(reply.body)["choices"][0]["message"]["content"]
        return isinstance(json.loads(content, object_pairs_hook=read), dict) and not repeated
    except ValueError:
        return False


async def _damaged(rig: Rig, section: Section, case: PlanCase, way: str, answer: str, *, whole: bool) -> None:
    name = f"{way}: {case.name}"
    trial = await rig.trial(section, name, script({"planner": text(answer)}), goal=case.goal, options=PLAN_OPTIONS)
    if trial is None:
        return
    section.count(way, trial.outcome)
    section.expect(
        name, (trial.outcome in {"succeeded", "failed plan_invalid"}, f"ended {trial.outcome}: {trial.run['error']}")
    )
    if way in MUST_BE_UNDERSTOOD:
        section.expect(name, (trial.outcome == "succeeded", f"ended {trial.outcome}"))
    if trial.outcome == "succeeded":
        tasks = await tasks_by_key(rig.client, trial.run["id"])
        understood = [(key, task["description"], set(task["depends_on"])) for key, task in tasks.items()]
        meant = [
            (f"0.{task['id']}", task["description"], {f"0.{one}" for one in task["depends_on"]}) for task in case.tasks
        ]
        section.expect(name, (understood == meant, "the plan that was run is not the one that was meant"))


# --- recorded answers


async def recorded(rig: Rig, cases: Path) -> Section:
    """What real endpoints answered, at every seat."""
    section = Section(title="recorded answers")
    seats = (_for_a_task, _for_the_plan, _for_recovery, _for_the_answer)
    await _all(section, (seat(rig, section, case) for case in corpora.recorded_answers(cases) for seat in seats))
    return section


async def _for_a_task(rig: Rig, section: Section, case: AnswerCase) -> None:
    name = f"{case.kind} {case.name}, for a task"
    answers = script({("executor", "b"): case.reply})
    trial = await rig.trial(section, name, answers, goal="Do this", plan=FORK, options={"on_failure": "fail"})
    if trial is None:
        return
    tries = len([call for call in trial.calls if call.task_id == "b"])
    section.count(case.kind, f"task: {trial.outcome}, {tries} calls")
    tasks = await tasks_by_key(rig.client, trial.run["id"])
    section.expect(name, (tasks["0.c"]["status"] == "succeeded", "its sibling did not succeed"))
    right = (
        {"succeeded"}
        if case.kind in USABLE
        else {"failed task_failed"}
        if case.kind.startswith(REFUSED_OR_SPOILED)
        else {"failed llm_unavailable"}
        if case.kind.startswith(ENDPOINT_AT_FAULT)
        else {"succeeded", "failed task_failed"}
    )
    section.expect(name, (trial.outcome in right, f"ended {trial.outcome}: {trial.run['error']}"))


async def _for_the_plan(rig: Rig, section: Section, case: AnswerCase) -> None:
    name = f"{case.kind} {case.name}, for the plan"
    trial = await rig.trial(section, name, script({"planner": case.reply}), goal="Plan this")
    if trial is None:
        return
    section.count(case.kind, f"plan: {trial.outcome}, {len(trial.calls)} calls")
    section.expect(
        name,
        (trial.run["status"] == "failed", f"ended {trial.outcome}"),
        (not trial.of_seat("executor"), "a task was called"),
    )
    if case.kind in USABLE:
        section.expect(name, (trial.outcome == "failed plan_invalid", f"ended {trial.outcome}"))


async def _for_recovery(rig: Rig, section: Section, case: AnswerCase) -> None:
    """A task fails, and this is what the recovery seat says to it: nothing in it is a usable decision."""
    name = f"{case.kind} {case.name}, for recovery"
    answers = script({("executor", "b"): text(""), "recovery": case.reply})
    options = {"max_attempts": 1, "max_replans": 1}
    trial = await rig.trial(section, name, answers, goal="Do this", plan=FORK, options=options)
    if trial is None:
        return
    section.count(case.kind, f"recovery: {trial.outcome}, {len(trial.of_seat('recovery'))} calls")
    tasks = await tasks_by_key(rig.client, trial.run["id"])
    section.expect(
        name,
        (trial.run["status"] == "failed", f"ended {trial.outcome}"),
        (tasks["0.c"]["status"] == "succeeded", "its sibling did not succeed"),
        ({key.partition(".")[0] for key in tasks} == {"0"}, "a plan was made of it"),
    )


async def _for_the_answer(rig: Rig, section: Section, case: AnswerCase) -> None:
    name = f"{case.kind} {case.name}, for the answer"
    trial = await rig.trial(section, name, script({"synthesizer": case.reply}), goal="Do this", plan=FORK)
    if trial is None:
        return
    section.count(case.kind, f"answer: {trial.outcome}, {len(trial.of_seat('synthesizer'))} calls")
    right = (
        {"succeeded"}
        if case.kind in USABLE
        else {"failed synthesis_failed"}
        if case.kind.startswith(REFUSED_OR_SPOILED)
        else {"failed llm_unavailable"}
        if case.kind.startswith(ENDPOINT_AT_FAULT)
        else {"succeeded", "failed synthesis_failed"}
    )
    section.expect(name, (trial.outcome in right, f"ended {trial.outcome}: {trial.run['error']}"))


# --- plans in place of what failed


async def replans(rig: Rig, cases: Path) -> Section:
    """Plans of models, sound and faulty, as the answer to a failed task; and every broken text."""
    section = Section(title="replans")
    small = [case for case in corpora.plans(cases) if len(case.tasks) < 100]
    drawn = [case for case in small if case.faults or case.name.startswith("llm_plans")]
    await _all(
        section,
        [
            *(_replanned(rig, section, case) for case in drawn),
            *(_broken_replan(rig, section, case) for case in corpora.broken_json(cases)),
        ],
    )
    return section


async def _replanned(rig: Rig, section: Section, case: PlanCase) -> None:
    """The failed task has another id and other words than any of the plan: what is sound is taken whole."""
    name = f"{case.name}, as a replan"
    answers = script({("executor", "first"): text(""), "recovery": plan_reply(case.plan["tasks"])})
    options = {**PLAN_OPTIONS, "max_attempts": 1, "max_replans": 1, "on_failure": "replan"}
    plan = {"tasks": tasks_of({"first": [], "last": ["first"]})}
    trial = await rig.trial(section, name, answers, goal=case.goal, options=options, plan=plan)
    if trial is None:
        return
    section.count("faulty" if case.faults else "sound", trial.outcome)
    if case.faults:
        section.expect(
            name,
            (trial.outcome == "failed replans_exhausted", f"ended {trial.outcome}"),
            (len(trial.of_seat("recovery")) == 3, f"{len(trial.of_seat('recovery'))} recovery calls"),
        )
        return
    tasks = await tasks_by_key(rig.client, trial.run["id"])
    understood = {key: set(task["depends_on"]) for key, task in tasks.items() if key.startswith("1.")}
    meant = {f"1.{task['id']}": {f"1.{one}" for one in task["depends_on"]} for task in case.tasks}
    section.expect(
        name,
        (trial.outcome == "succeeded", f"ended {trial.outcome}: {trial.run['error']}"),
        (understood == meant, "the plan that was run is not the one that was meant"),
        (tasks["0.last"]["status"] == "superseded", f"0.last is {tasks['0.last']['status']}"),
    )


async def _broken_replan(rig: Rig, section: Section, case: AnswerCase) -> None:
    name = f"{case.kind} {case.name}, as a replan"
    answers = script({("executor", "b"): text(""), "recovery": case.reply})
    options = {"max_attempts": 1, "max_replans": 1, "on_failure": "replan"}
    trial = await rig.trial(section, name, answers, goal="Do this", plan=FORK, options=options)
    if trial is None:
        return
    section.count(case.kind, trial.outcome)
    right = {"failed replans_exhausted"} | ({"failed llm_unavailable"} if case.kind == "no UTF-8" else set())
    section.expect(name, (trial.outcome in right, f"ended {trial.outcome}"))


SECTIONS: dict[str, Callable[[Rig, Path], Coroutine[Any, Any, Section]]] = {
    "graphs": graphs,
    "planner": planner,
    "faulty": faulty,
    "malformed": malformed,
    "recorded": recorded,
    "replans": replans,
}
