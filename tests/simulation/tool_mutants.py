"""Mistakes planted in what the application does about tools; see `mutants`."""

from app.domain.transcript import AskedCall, Transcript
from app.engine import acting, loading
from app.engine.acting import Acting
from app.engine.admission import Admission
from app.engine.driver import Driver
from app.engine.tooling import ToolCaller
from app.storage import writing
from app.storage.changes import Changes
from tests.simulation.planting import mutant

TOOL_MUTANTS = {
    # What is sent.
    "a lost once call is sent again": mutant(
        Acting._once_more,
        ("again.status = ToolCallStatus.AWAITING_REVIEW", "pass"),
    ),
    "a once call whose outcome is unknown may be made again": mutant(
        Acting._judge_again,
        ("elif any(call.may_have_acted for call in before) or self._needs_approval(asked):", "elif False:"),
    ),
    "a tool that says nothing of a once call is believed to have failed": mutant(
        acting._is_unknown,
        ("call.side_effects is SideEffects.ONCE and", "False and"),
    ),
    "a once call that returned is made again": mutant(
        Acting._judge_again,
        ("if done is not None:", "if False:"),
        ("elif any(call.may_have_acted for call in before) or", "elif"),
    ),
    "what a task did before it began anew is forgotten": mutant(
        loading._take_up_tools,
        ("task.transcript.remember([call])", "pass"),
    ),
    "a tool call is sent before it is recorded": mutant(
        Driver._drive,
        (
            "if begins or calls or",
            "self._send([c for c in calls if not hasattr(c, 'seat')], state, group)\n        if begins or calls or",
        ),
        (
            "await self._hold()\n        self._send(calls, state, group)",
            "await self._hold()\n        self._send([c for c in calls if hasattr(c, 'seat')], state, group)",
        ),
    ),
    "a tool that is not the task's is called": mutant(
        Acting._judge,
        (
            'if spec is None or asked.tool not in task.tools or asked.tool not in self._state.option("tools"):',
            "if spec is None:",
        ),
    ),
    "a refused call is sent": mutant(
        Acting._refuse,
        (
            "asked.status = ToolCallStatus.REFUSED",
            "asked.status = ToolCallStatus.ASKED if asked.key else ToolCallStatus.REFUSED",
        ),
    ),
    "the idempotency key holds the call's number": mutant(
        Acting._judge,
        (
            "asked.key = _key(str(self._state.run.id), key, asked.tool, arguments)",
            "asked.key = _key(str(self._state.run.id), key, asked.tool, arguments | {'n': asked.number})",
        ),
    ),
    "the idempotency key is the same for all arguments": mutant(
        acting._key,
        ("canonical(arguments)", "''"),
    ),
    "a call that is sent again has no key": mutant(
        Acting._once_more,
        ("key=lost.key", "key='again'"),
    ),
    "a tool is not given its key": mutant(
        ToolCaller._call,
        ('idempotency_key=call.key or ""', "idempotency_key=call.call_id"),
    ),
    # What people say.
    "approval is not asked for an idempotent tool": mutant(
        Acting._needs_approval,
        ("asked.side_effects is not SideEffects.NONE", "asked.side_effects is SideEffects.ONCE"),
    ),
    "a rejected call is sent": mutant(
        Acting.answered,
        ("case Decision.APPROVE | Decision.RETRY:", "case Decision.APPROVE | Decision.RETRY | Decision.REJECT:"),
        ("case Decision.REJECT:", "case Decision.SKIP:"),
    ),
    "what waits for a person is sent": mutant(
        Transcript.asked,
        (
            "call.status is ToolCallStatus.ASKED",
            "call.status in (ToolCallStatus.ASKED, ToolCallStatus.AWAITING_REVIEW)",
        ),
    ),
    "a supplied result is not written": mutant(
        Acting.answered,
        ("if call.status is not ToolCallStatus.ASKED:", "if call.status is ToolCallStatus.REFUSED:"),
    ),
    # What is recorded.
    "a result is written without ending the call": mutant(
        Acting.take_in,
        ("changes.tool_ended(call.number, call.status, result=call.result, error=call.error)", "pass"),
    ),
    "a tool's fault is not heard of": mutant(
        ToolCaller.send,
        ("came_back(ToolFaulted(sending, told))", "pass"),
    ),
    "a refused call is counted": mutant(
        Changes.tool_asked,
        (
            "self._new_tool_calls[call.number]",
            "self.tool_calls += call.status is ToolCallStatus.REFUSED\n    self._new_tool_calls[call.number]",
        ),
    ),
    "the budget of tool calls is ignored": mutant(
        Admission._admit_tools,
        ("self.refused_by = state.budget.refuses_tools(calls)", "pass"),
    ),
    "the budget forgets tool calls": mutant(
        Admission._admit_tools,
        ("state.budget.tools_opened(calls)", "pass"),
    ),
    # Taking over.
    "the transcript forgets its last step on loading": mutant(
        loading._take_up_tools,
        ("for call in calls:", "for call in calls[:-1] if len(calls) > 1 else calls:"),
    ),
    "a take-over leaves tool calls open": mutant(
        Acting.take_up,
        ("for call in task.transcript.lost():", "for call in ():"),
    ),
    "a take-over sends all of a step again": mutant(
        Transcript.lost,
        (
            "call.status is ToolCallStatus.OPEN",
            "call.status in (ToolCallStatus.OPEN, ToolCallStatus.RETURNED)",
        ),
    ),
    "a call that takes the place of a lost one stands beside it": mutant(
        loading._take_up_tools,
        ("if any(before.position == call.position for before in step.calls):", "if False:"),
    ),
    # Stopping.
    "a run that ends leaves calls unsent": mutant(
        Acting.finish,
        ("for call in self._state.tasks[key].transcript.unsent():", "for call in ():"),
    ),
    "the loop goes on before all its calls are back": mutant(
        Acting.go_on,
        ("if transcript.in_flight:", "if False:"),
    ),
    "what was settled is taken for unsettled": mutant(
        AskedCall.is_waiting,
        ("in UNFINISHED_TOOL_CALLS", "in (*UNFINISHED_TOOL_CALLS, type(self.status).REFUSED)"),
    ),
    "an ended tool call keeps no result": mutant(
        Changes.tool_ended,
        ('"result": result', '"result": None'),
    ),
    "a tool call's end is not dated": mutant(
        writing.Rows.add,
        (
            'to["ended_tool_calls"] += [of_run | row | {"finished_at": now}',
            'to["ended_tool_calls"] += [of_run | row | {"finished_at": None}',
        ),
    ),
}
