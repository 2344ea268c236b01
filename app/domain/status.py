"""The states of runs, tasks, attempts and calls, each with what is true in it."""

from enum import StrEnum


class RunStatus(StrEnum):
    """queued -> planning -> running -> succeeded | failed | cancelled, with two places to stand still."""

    # Stored and due; no worker has begun it, or it was set going again.
    QUEUED = "queued"
    # A worker draws generation 0.
    PLANNING = "planning"
    # A plan is stored; its tasks run, wait for each other, or wait for a retry.
    RUNNING = "running"
    # Nothing runs and nothing can start until a person has answered.
    AWAITING_REVIEW = "awaiting_review"
    # A client asked it to stand still; nothing is in flight.
    PAUSED = "paused"
    # The result is stored. Final.
    SUCCEEDED = "succeeded"
    # `error` says why; everything that was finished is kept.
    FAILED = "failed"
    # A client asked for it; everything that was finished is kept.
    CANCELLED = "cancelled"


CLAIMABLE = (RunStatus.QUEUED, RunStatus.PLANNING, RunStatus.RUNNING)
"""A worker may take a run in one of these once its `ready_at` has come."""

ACTIVE = (RunStatus.PLANNING, RunStatus.RUNNING)
"""The time that `max_seconds` bounds."""

FINISHED = (RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED)


class StopRequest(StrEnum):
    """What a client has asked of a run that a worker holds; only the worker moves the run."""

    CANCEL = "cancel"
    PAUSE = "pause"


class Mode(StrEnum):
    """What a run is for."""

    # Draw a plan and walk it.
    EXECUTE = "execute"
    # Draw a plan and stop: no task runs.
    PLAN_ONLY = "plan_only"


class TaskStatus(StrEnum):
    """pending -> running -> succeeded | failed | skipped | cancelled, with ways back for retries."""

    # Waits for its dependencies, or for a free place.
    PENDING = "pending"
    # An attempt is under way: a call for it is in flight, or its worker has died and another goes on.
    RUNNING = "running"
    # Waits until `next_attempt_at`, then runs again.
    RETRYING = "retrying"
    # Waits for a person.
    AWAITING_REVIEW = "awaiting_review"
    # `result` is stored; never run again.
    SUCCEEDED = "succeeded"
    # Its attempts are used up, or it failed for good.
    FAILED = "failed"
    # Given up on purpose; its dependents run and are told.
    SKIPPED = "skipped"
    # The run ended first.
    CANCELLED = "cancelled"
    # A later generation took its place before it started.
    SUPERSEDED = "superseded"


class AttemptStatus(StrEnum):
    """One try at a task."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    # The model or a tool spoiled it; `error` says how.
    FAILED = "failed"
    CANCELLED = "cancelled"


class CallStatus(StrEnum):
    """One request to a model. A row is written before the request is sent."""

    # Sent, or about to be.
    OPEN = "open"
    # An answer came back, usable or not.
    ANSWERED = "answered"
    # The endpoint gave no answer; `error` says why.
    FAILED = "failed"
    # Cut by us.
    CANCELLED = "cancelled"
    # Its worker died or lost the run; nobody knows whether it was answered.
    LOST = "lost"


class Seat(StrEnum):
    """Who asks the model."""

    PLANNER = "planner"
    EXECUTOR = "executor"
    RECOVERY = "recovery"
    SYNTHESIZER = "synthesizer"


class PlanReason(StrEnum):
    """Why a generation was drawn."""

    # The planner drew the first one.
    INITIAL = "initial"
    # A client drew it.
    CLIENT = "client"
    # Recovery drew it in place of what failed.
    TASK_FAILED = "task_failed"
    # Drawn in the words of a person who has answered a review.
    REQUESTED = "requested"


class OnFailure(StrEnum):
    """What becomes of a task whose attempts are used up."""

    AUTO = "auto"
    RETRY = "retry"
    SKIP = "skip"
    REPLAN = "replan"
    FAIL = "fail"
    REVIEW = "review"


class OnExhausted(StrEnum):
    """What follows when the means against a failure are used up."""

    FAIL = "fail"
    REVIEW = "review"


class Approval(StrEnum):
    """What a person is asked before it is done."""

    NONE = "none"
    PLAN = "plan"
    TOOLS = "tools"
    PLAN_AND_TOOLS = "plan_and_tools"


class ReviewKind(StrEnum):
    """What a run asks of a person."""

    # May this plan be walked?
    PLAN = "plan"
    # What is to become of this failed task?
    FAILURE = "failure"
    # May this tool be called?
    TOOL_CALL = "tool_call"


class Decision(StrEnum):
    """A person's answer to a review."""

    APPROVE = "approve"
    REJECT = "reject"
    EDIT = "edit"
    RETRY = "retry"
    SKIP = "skip"
    REPLAN = "replan"
    SUPPLY = "supply"
    FAIL = "fail"


class Strategy(StrEnum):
    """What the recovery seat can choose for a failed task."""

    RETRY = "retry"
    SKIP = "skip"
    REPLAN = "replan"


class SideEffects(StrEnum):
    """What calling a tool changes in the world, and so whether a call may be repeated."""

    # Nothing: it may be called again at any time.
    NONE = "none"
    # Something, once for each idempotency key: the same call may be sent again.
    IDEMPOTENT = "idempotent"
    # Something, each time: what is not known to have failed is never sent again without a person.
    ONCE = "once"


class ToolCallStatus(StrEnum):
    """A call of a tool that a model has asked for. A row is written before the call is sent."""

    # Wanted, and not sent yet.
    ASKED = "asked"
    # A person is to say first whether it is sent.
    AWAITING_REVIEW = "awaiting_review"
    # Sent, or about to be.
    OPEN = "open"
    # The tool gave a result; or a person did.
    RETURNED = "returned"
    # The tool gave none; `error` says why.
    FAILED = "failed"
    # Never sent: there is no such tool for this task, its arguments do not fit, a person would not have it.
    REFUSED = "refused"
    # Cut by us: nobody knows what it did.
    CANCELLED = "cancelled"
    # Its worker died or lost the run, or its tool, which acts each time, said nothing: nobody knows what it did.
    LOST = "lost"
