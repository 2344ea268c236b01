"""A generation of a run's plan as it is to be stored: keys, positions and waves in place of a plan's own ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.domain.graph import critical_path, depths
from app.domain.ids import TaskKey, task_key
from app.domain.plan import PlannedTask
from app.domain.status import PlanReason


@dataclass(frozen=True, kw_only=True, slots=True)
class NewTask:
    """A task as a generation adds it; `depends_on` are keys."""

    key: TaskKey
    position: int
    description: str
    depends_on: tuple[TaskKey, ...]
    wave: int
    critical: bool = True
    tools: tuple[str, ...] = ()
    output_schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NewPlan:
    """A generation to store. What is carried is neither replaced nor dropped by it, finished or not."""

    generation: int
    reason: PlanReason
    tasks: Sequence[NewTask]
    critical_path: Sequence[TaskKey]
    parent_generation: int | None = None
    failed_task_keys: Sequence[TaskKey] = ()
    carried: Sequence[TaskKey] = ()
    superseded: Sequence[TaskKey] = ()
    prompt_hash: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Carried:
    """What a new generation must know of a task that goes on."""

    wave: int
    depends_on: Sequence[TaskKey]


def first_plan(tasks: Sequence[PlannedTask], reason: PlanReason, *, prompt_hash: str | None = None) -> NewPlan:
    """Generation 0 of these tasks, which have been validated."""
    return next_plan(tasks, reason, generation=0, position=0, carried={}, prompt_hash=prompt_hash)


def next_plan(
    tasks: Sequence[PlannedTask],
    reason: PlanReason,
    *,
    generation: int,
    position: int,
    carried: Mapping[TaskKey, Carried],
    failed: Sequence[TaskKey] = (),
    superseded: Sequence[TaskKey] = (),
    prompt_hash: str | None = None,
) -> NewPlan:
    """The generation that adds these validated tasks, from this plan order on, to what is carried.

    A dependency is a task of the plan itself where it names one, and a carried task otherwise.
    """
    own = {task.id: task_key(generation, task.id) for task in tasks}
    needs = {own[task.id]: tuple(own.get(d, TaskKey(d)) for d in task.depends_on) for task in tasks}
    waves = depths(needs, known={key: task.wave for key, task in carried.items()})
    return NewPlan(
        generation=generation,
        reason=reason,
        parent_generation=generation - 1 if generation else None,
        failed_task_keys=tuple(failed),
        carried=tuple(carried),
        superseded=tuple(superseded),
        critical_path=critical_path({**{key: task.depends_on for key, task in carried.items()}, **needs}),
        prompt_hash=prompt_hash,
        tasks=[
            NewTask(
                key=own[task.id],
                position=place,
                description=task.description,
                depends_on=needs[own[task.id]],
                wave=waves[own[task.id]],
                critical=task.critical,
                tools=task.tools,
                output_schema=task.output_schema,
            )
            for place, task in enumerate(tasks, start=position)
        ],
    )
