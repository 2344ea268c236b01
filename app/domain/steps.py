"""What goes into the walk and what comes out of it: tasks in, steps out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.domain.failures import RunError
from app.domain.ids import TaskKey
from app.domain.recovery import AskRecovery
from app.domain.status import RunStatus, TaskStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class WalkTask:
    """What the walk must know of a task. `due_at` is when a task that waits for a retry may start again.

    `held` tasks wait for a person.
    """

    key: TaskKey
    position: int
    depends_on: tuple[TaskKey, ...] = ()
    status: TaskStatus = TaskStatus.PENDING
    due_at: int | None = None
    critical: bool = True
    reworded: bool = False
    held: bool = False


@dataclass(frozen=True, slots=True)
class DrawPlan:
    """Ask the planner."""


@dataclass(frozen=True, slots=True)
class StartTasks:
    """Start these, in this order."""

    keys: Sequence[TaskKey]


@dataclass(frozen=True, slots=True)
class Synthesize:
    """Ask the synthesizer: every task is done."""


@dataclass(frozen=True, slots=True)
class CutCalls:
    """Close what is in flight: nobody wants the answers."""


@dataclass(frozen=True, slots=True)
class Park:
    """Nothing is in flight and nothing can start by itself: let the run stand still in this status."""

    status: RunStatus


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over, nothing is in flight: write its end."""

    status: RunStatus
    error: RunError | None = None


Step = DrawPlan | AskRecovery | StartTasks | Synthesize | CutCalls | Park | Finish
Call = DrawPlan | AskRecovery | Synthesize | TaskKey
"""What a call is made for."""
Admit = Callable[[Call], bool]
"""Whether a call may be made now as far as others than the walk are concerned: its budget, its endpoint."""
