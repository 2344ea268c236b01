"""What is done about failures and reviews: the walk's decisions, recovery's answers and people's, carried out."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, assert_never

from app.agents import recovery
from app.agents.planner import TurnedDown
from app.domain.failures import RunError
from app.domain.generation import NewPlan, next_plan
from app.domain.graph import validate
from app.domain.ids import TaskKey
from app.domain.plan import PlannedTask, PlanProblem
from app.domain.recovery import AskRecovery, Means, Remedy
from app.domain.replan import dropped
from app.domain.status import (
    AttemptStatus,
    Decision,
    PlanReason,
    ReviewKind,
    RunStatus,
    Seat,
    TaskStatus,
)
from app.domain.steps import WalkTask
from app.domain.text import shortened
from app.engine.clock import Clock
from app.engine.state import DrivenTask, RunState, task_error
from app.storage.changes import Changes
from app.storage.database import new_id
from app.storage.records import ReviewRecord
from app.storage.runs import plan_created

_MAX_REASON_CHARACTERS = 1_000
_MAX_SHOWN_TASKS = 200  # the whole plan can be read by itself
_OF_A_FAILURE = (Decision.RETRY, Decision.SKIP, Decision.REPLAN, Decision.SUPPLY, Decision.FAIL)
_OF_A_PLAN = (Decision.APPROVE, Decision.EDIT, Decision.REJECT)


class Remedies:
    """For one run. Tells the walk, and adds to the changes what is to be written."""

    def __init__(self, state: RunState, clock: Clock) -> None:
        self._state = state
        self._clock = clock

    # The walk's decisions.

    def apply(self, key: TaskKey, remedy: Remedy, changes: Changes, *, note: str | None = None) -> None:
        """What comes of a failed task; a person who is asked about it is told the note."""
        error = self._state.tasks[key].last_error
        match remedy.means:
            case Means.ASK:
                return
            case Means.REVIEW if self._state.walk.is_ending:
                return  # the run would not wait for the answer
            case Means.SKIP:
                self._skip(key, changes)
                self._state.walk.skipped(key)
            case Means.REVIEW:
                self._ask_person(key, changes, note)
            case Means.GIVE_UP:
                self._state.walk.give_up(task_error(key, error, code=remedy.code))
            case _:
                assert_never(remedy.means)

    def take_up(self, changes: Changes) -> None:
        """For a run that is loaded: what was under way about its failures, and about its reviews."""
        state = self._state
        for review in state.plan_reviews:
            self._remember_words(review)
        if not state.walk.is_ending:
            for key in state.failures:
                if not self._has_requested(key):
                    self.apply(key, state.walk.failed(key, self._clock.now()), changes)
                    self._go_on_waiting(key)
        for review in list(state.reviews.values()):
            if review.answered_at is not None and review.kind is not ReviewKind.TOOL_CALL:
                self.answered(review, changes)
        self.open_plan_reviews(changes)

    # The recovery seat's answers.

    def read(self, step: AskRecovery, text: str) -> recovery.Recovery | list[PlanProblem]:
        """The answer, or why it is none."""
        circumstances, tools = self._state.circumstances(step), self._state.option("tools")
        return recovery.read(text, asked=step.asked, circumstances=circumstances, tools=tools)

    def take(self, step: AskRecovery, answer: recovery.Recovery, changes: Changes) -> None:
        """Do as the recovery seat says, as far as there are means left."""
        state, key = self._state, step.key
        match answer:
            case recovery.Reword(description):
                remedy = state.walk.retry_chosen(step, self._clock.now())
                if remedy.means is Means.ASK:
                    self._reword(key, description, changes, by_recovery=True)
                    changes.task(key, TaskStatus.RETRYING)
                else:
                    self.apply(key, remedy, changes)
            case recovery.Skip():
                self._skip(key, changes)
                state.walk.skip_chosen(step)
            case recovery.Replan(tasks, drop):
                refused = state.walk.replan_chosen(step)
                if refused is None:
                    self._replan(step, tasks, drop, changes)
                else:
                    self.apply(key, refused, changes)
            case _:
                assert_never(answer)

    def spoiled(self, step: AskRecovery, message: str, changes: Changes, *, again: bool) -> None:
        """The recovery seat gave no usable answer, however often it was asked."""
        remedies = self._state.walk.recovery_spoiled(step, again=again)
        if step.replaces:
            # A person turned a plan down, and no other came of it: they are asked about that one once more.
            turned_down = step.replaces[0].partition(".")[0]
            for review in list(self._state.reviews.values()):
                if review.kind is ReviewKind.PLAN and str(review.generation) == turned_down:
                    self._close(review, changes)
            self.open_plan_reviews(changes)
            return
        for key, remedy in remedies.items():
            if remedy.means is Means.GIVE_UP:
                error = self._state.tasks[key].last_error
                words = f"Task {key} failed: {error.get('message', 'unknown')} Recovery gave nothing: {message}"
                self._state.walk.give_up(RunError(code=remedy.code, message=words, task_key=key))
            else:
                self.apply(key, remedy, changes, note=f"Recovery gave nothing: {message}")

    def store(
        self, plan: NewPlan, changes: Changes, tell: Callable[[Sequence[WalkTask]], None], *, held: bool | None = None
    ) -> None:
        """Write a new generation, and tell the walk of its tasks, which wait for a person where the goal says so."""
        state = self._state
        waits = state.needs_approval if held is None else held
        for key in plan.superseded:
            changes.task(key, TaskStatus.SUPERSEDED)
            changes.event("task.superseded", task_key=key, generation=plan.generation)
            if state.tasks[key].attempt_open:  # it waited for another try
                changes.attempt_ended(key, state.tasks[key].attempt, AttemptStatus.CANCELLED)
                state.tasks[key].attempt_open = False
        is_first = state.generation is None
        changes.plans.append(plan)
        changes.event("plan.created", **plan_created(plan))
        if is_first or not state.walk.has_plan:
            changes.status = RunStatus.RUNNING
            changes.event("run.started")
        tell(state.take_in(plan, held=waits))
        for review in list(state.reviews.values()):
            # What it asks about, or its answer has asked to replace, is gone.
            if review.kind is ReviewKind.PLAN and not state.of_generation(review.generation or 0):
                state.walk.review_answered(review.id)
                self._close(review, changes)
        if waits:
            self.open_plan_reviews(changes)

    def _replan(self, step: AskRecovery, tasks: Sequence[PlannedTask], drop: Sequence[str], changes: Changes) -> None:
        state = self._state
        circumstances = state.circumstances(step)
        superseded = [*circumstances.replaced, *dropped(drop, circumstances)]
        plan = next_plan(
            tasks,
            PlanReason.REQUESTED if step.requested else PlanReason.TASK_FAILED,
            generation=(state.generation or 0) + 1,
            position=len(state.tasks),
            carried=state.carried(without=[*step.keys, *superseded]),
            failed=step.keys,
            superseded=superseded,
            prompt_hash=recovery.prompt_hash(step.asked, with_tools=bool(state.option("tools"))),
        )
        others: dict[TaskKey, Remedy] = {}
        self.store(plan, changes, lambda added: others.update(state.walk.replanned(step, added, superseded=superseded)))
        for key, remedy in others.items():
            self.apply(key, remedy, changes)
        for review in list(state.reviews.values()):
            if review.task_key in step.keys and review.answered_at is not None:
                self._close(review, changes)

    # Reviews.

    def open_plan_reviews(self, changes: Changes, *, note: str | None = None) -> None:
        """Ask a person about the plans that wait for one and have not been asked about yet."""
        state = self._state
        if not state.needs_approval or state.generation is None or state.walk.is_ending:
            return
        asked = {review.generation for review in state.reviews.values() if review.kind is ReviewKind.PLAN}
        for generation in range(state.generation + 1):
            held = state.of_generation(generation)
            if held and generation not in state.approved | asked:
                self._open_plan_review(generation, held, note, changes)

    def _open_plan_review(self, generation: int, held: Sequence[TaskKey], note: str | None, changes: Changes) -> None:
        tasks = [
            {
                "key": key,
                "description": self._state.tasks[key].description,
                "depends_on": list(self._state.tasks[key].depends_on),
            }
            | _tools_of(self._state.tasks[key])
            for key in held[:_MAX_SHOWN_TASKS]
        ]
        asked = f"May generation {generation} of the plan, {len(held)} task(s), be carried out?"
        question = {
            "text": " ".join(filter(None, (note, asked))),
            "plan": {"generation": generation, "tasks": tasks, "tasks_truncated": len(held) > len(tasks)},
        }
        self._open(ReviewKind.PLAN, question, _OF_A_PLAN, changes, generation=generation)

    def answered(self, review: ReviewRecord, changes: Changes) -> None:
        """Carry out what a person has answered. Done twice, after a crash in between, it comes to the same."""
        state = self._state
        if review.answer is None:
            return
        state.reviews[review.id] = review
        state.walk.review_answered(review.id)
        decision = Decision(review.answer["decision"])
        if review.kind is ReviewKind.PLAN and review.generation is not None:
            self._plan_answered(review, decision, review.generation, changes)
        elif review.task_key is not None:
            self._failure_answered(review, decision, review.task_key, changes)

    def _plan_answered(self, review: ReviewRecord, decision: Decision, generation: int, changes: Changes) -> None:
        state, answer = self._state, review.answer or {}
        held = state.of_generation(generation)
        match decision:
            case Decision.APPROVE:
                state.approved.add(generation)
                state.walk.approved(held)
                self._close(review, changes)
            case Decision.EDIT:
                self._edited(review, held, answer["plan"], changes)
            case Decision.REJECT if answer.get("instructions"):
                self._redraw(review, held, answer["instructions"], changes)
            case _:
                state.walk.give_up(
                    RunError(code="review_rejected", message=f"Generation {generation} of the plan was rejected.")
                )
                self._close(review, changes)

    def _edited(
        self, review: ReviewRecord, held: Sequence[TaskKey], drawn: Mapping[str, Any], changes: Changes
    ) -> None:
        """A person's own plan stands in for the one that was asked about."""
        state = self._state
        tasks = [
            PlannedTask(
                id=task["id"],
                description=task["description"],
                depends_on=tuple(dict.fromkeys(task.get("depends_on", ()))),
                critical=task.get("critical", True),
                tools=tuple(dict.fromkeys(task.get("tools", ()))),
                output_schema=task.get("output_schema"),
            )
            for task in drawn["tasks"]
        ]
        behind = [*held, *(key for key in state.walk.dependents(held) if key not in held)]
        carried = state.carried(without=behind)
        problems = validate(tasks, min_tasks=1, max_tasks=len(tasks), known_keys=carried, tools=state.option("tools"))
        if problems:
            # What it builds on has been replaced since: the person is asked again.
            self._close(review, changes)
            self.open_plan_reviews(changes, note=f"Your plan could not be taken: {problems[0].message}")
            return
        plan = next_plan(
            tasks,
            PlanReason.CLIENT,
            generation=(state.generation or 0) + 1,
            position=len(state.tasks),
            carried=carried,
            superseded=behind,
        )
        self.store(plan, changes, lambda added: state.walk.replace_held(added, superseded=behind), held=False)

    def _redraw(self, review: ReviewRecord, held: Sequence[TaskKey], words: str, changes: Changes) -> None:
        """A person wants another plan: asked of whoever drew this one."""
        state, generation = self._state, review.generation or 0
        if failed := state.failed_keys.get(generation, ()):
            state.walk.answered_replan(failed, words, replaces=held)
            self._go_on_waiting(failed[0])
            return
        self._remember_words(review)
        state.walk.plan_asked_again(state.waits.pop((Seat.PLANNER, None), None))
        if state.status is RunStatus.RUNNING:
            changes.status = RunStatus.PLANNING
            changes.event("run.planning")

    def _remember_words(self, review: ReviewRecord) -> None:
        """Have the planner see a plan of its own that a person turned down, and their words."""
        state, answer = self._state, review.answer or {}
        words, generation = answer.get("instructions"), review.generation
        if answer.get("decision") != Decision.REJECT or not words or generation is None:
            return
        if state.failed_keys.get(generation):
            return
        tasks = [
            {
                "id": key.partition(".")[2],
                "description": task.description,
                "depends_on": [needed.partition(".")[2] for needed in task.depends_on],
            }
            | _tools_of(task)
            for key, task in state.tasks.items()
            if key.startswith(f"{generation}.")
        ]
        said = TurnedDown(plan=json.dumps({"tasks": tasks}, ensure_ascii=False), words=words)
        if said not in state.turned_down:
            state.turned_down.append(said)

    def _go_on_waiting(self, key: TaskKey) -> None:
        """What was asked about this task before the run was loaded keeps its place."""
        if (due_at := self._state.waits.pop((Seat.RECOVERY, key), None)) is not None:
            self._state.walk.recovery_resumed(key, due_at)

    def _failure_answered(self, review: ReviewRecord, decision: Decision, key: TaskKey, changes: Changes) -> None:
        state, answer = self._state, review.answer or {}
        match decision:
            case Decision.RETRY:
                self._reword(key, answer.get("description"), changes, by_recovery=False)
                state.walk.answered_retry(key)
            case Decision.SKIP:
                self._skip(key, changes)
                state.walk.skipped(key)
            case Decision.SUPPLY:
                changes.task(key, TaskStatus.SUCCEEDED, result=answer["result"])
                changes.event("task.succeeded", task_key=key, review_id=str(review.id))
                state.results[key] = answer["result"]
                state.walk.succeeded(key)
            case Decision.REPLAN:
                self._fail(key, changes)
                state.walk.answered_replan([key], answer.get("instructions"))
                self._go_on_waiting(key)
                return  # closed with the plan that comes of it: until then a crash must not forget it
            case _:
                self._fail(key, changes)
                state.walk.failed_for_good(key, task_error(key, state.tasks[key].last_error))
        self._close(review, changes)

    def _ask_person(self, key: TaskKey, changes: Changes, note: str | None) -> None:
        """What is to become of this failed task?"""
        task = self._state.tasks[key]
        for review in list(self._state.reviews.values()):
            if review.task_key == key:  # answered, and nothing came of it
                self._close(review, changes)
        changes.task(key, TaskStatus.AWAITING_REVIEW)
        question = {
            "text": " ".join(filter(None, (f"Task {key} failed.", note, "What is to become of it?"))),
            "task": {"key": key, "description": task.description, "depends_on": list(task.depends_on)},
            "error": dict(task.last_error),
            "attempts": task.attempt,
        }
        self._open(ReviewKind.FAILURE, question, _OF_A_FAILURE, changes, key=key)

    def _open(
        self,
        kind: ReviewKind,
        question: Mapping[str, Any],
        allowed: Sequence[Decision],
        changes: Changes,
        *,
        key: TaskKey | None = None,
        generation: int | None = None,
    ) -> None:
        review = ReviewRecord(
            id=new_id(),
            kind=kind,
            task_key=key,
            generation=generation,
            tool_call=None,
            question=question,
            allowed_answers=allowed,
            answer=None,
            opened_at=self._clock.now(),
            answered_at=None,
            closed_at=None,
        )
        changes.review_opened(
            review.id, kind, question=question, allowed_answers=allowed, task_key=key, generation=generation
        )
        self._state.reviews[review.id] = review
        self._state.walk.review_opened(review.id, key)

    def _close(self, review: ReviewRecord, changes: Changes) -> None:
        changes.review_closed(review.id)
        self._state.reviews.pop(review.id, None)

    def _has_requested(self, key: TaskKey) -> bool:
        """Whether a person's answer about this failed task is still to be carried out."""
        return any(r.task_key == key and r.answered_at is not None for r in self._state.reviews.values())

    # Tasks.

    def _reword(self, key: TaskKey, wording: str | None, changes: Changes, *, by_recovery: bool) -> None:
        """The task begins anew: in other words, where there are any."""
        task = self._state.tasks[key]
        task.description = wording or task.description
        task.transcript.begin_anew()
        task.attempts_before = task.attempt
        changes.task_begins_anew(key, wording=wording, reworded=by_recovery, attempts_before=task.attempt)
        if wording is not None:
            changes.event("task.reworded", task_key=key, description=wording)

    def _fail(self, key: TaskKey, changes: Changes) -> None:
        if self._state.walk.status(key) is not TaskStatus.FAILED:
            task = self._state.tasks[key]
            changes.task(key, TaskStatus.FAILED)
            changes.event("task.failed", task_key=key, attempt=task.attempt, error=task.last_error)

    def _skip(self, key: TaskKey, changes: Changes) -> None:
        task = self._state.tasks[key]
        task.skip_reason = shortened(str(task.last_error.get("message", "given up")), _MAX_REASON_CHARACTERS)
        changes.task_skipped(key, task.skip_reason)
        changes.event("task.skipped", task_key=key, reason=task.skip_reason)


def _tools_of(task: DrivenTask) -> dict[str, list[str]]:
    """The task's tools, as a plan shows them; nothing where it has none."""
    return {"tools": list(task.tools)} if task.tools else {}
