"""The collected cases, and what is true of each, worked out here and not by the code under trial."""

import base64
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import networkx as nx

from tests.scripted_model import Reply, raw, text

PLAN_FILES = ("asynchow", "wfcommons", "llmcompiler_examples", "worfbench", "llm_plans")


@dataclass(frozen=True, kw_only=True)
class PlanCase:
    """A plan as it was found, faults and all."""

    name: str
    goal: str
    tasks: list[dict[str, Any]]

    @cached_property
    def dependencies(self) -> dict[str, set[str]]:
        """By id; the entries of an id that is given twice are taken together."""
        merged: dict[str, set[str]] = {}
        for task in self.tasks:
            merged.setdefault(str(task["id"]), set()).update(map(str, task["depends_on"]))
        return merged

    @cached_property
    def graph(self) -> "nx.DiGraph[str]":
        """An edge from each task to those that need it; self loops and tasks that do not exist are left out."""
        graph: nx.DiGraph[str] = nx.DiGraph()
        graph.add_nodes_from(self.dependencies)
        for task, needed in self.dependencies.items():
            graph.add_edges_from((one, task) for one in needed if one in self.dependencies and one != task)
        return graph

    @cached_property
    def faults(self) -> set[tuple[str, str]]:
        """What is wrong: a problem's code, and the id of a task that it must name (`""`: any of a cycle)."""
        times = Counter(str(task["id"]) for task in self.tasks)
        found = {("duplicate_id", task) for task, n in times.items() if n > 1}
        for task, needed in self.dependencies.items():
            found |= {("self_dependency", task) for one in needed if one == task}
            found |= {("unknown_dependency", one) for one in needed if one not in self.dependencies}
        if not nx.is_directed_acyclic_graph(self.graph):
            found.add(("cycle", ""))
        return found

    @cached_property
    def waves(self) -> dict[str, int]:
        """1 + the longest path before each task of a sound plan."""
        generations = nx.topological_generations(self.graph)
        return {task: number for number, tasks in enumerate(generations, 1) for task in tasks}

    @cached_property
    def sinks(self) -> set[str]:
        """The tasks that nothing depends on."""
        return {task for task, degree in self.graph.out_degree() if degree == 0}

    @cached_property
    def plan(self) -> dict[str, Any]:
        """As a client or a planner writes it."""
        return {"tasks": [{name: task[name] for name in ("id", "description", "depends_on")} for task in self.tasks]}


def rows(directory: Path, name: str) -> Iterator[dict[str, Any]]:
    """The objects of a file of cases."""
    with (directory / f"{name}.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def plans(directory: Path) -> list[PlanCase]:
    """All plans of all files."""
    return [
        PlanCase(name=f"{name}/{number} {row['id']}", goal=row["goal"], tasks=row["tasks"])
        for name in PLAN_FILES
        for number, row in enumerate(rows(directory, name))
    ]


@dataclass(frozen=True, kw_only=True)
class AnswerCase:
    """Something a model or an endpoint may answer."""

    name: str
    kind: str
    reply: Reply


def broken_json(directory: Path) -> list[AnswerCase]:
    """Texts that are JSON, nearly so, or not at all, as completions; bytes that are no UTF-8 stand in the body raw."""
    return [
        AnswerCase(
            name=row["name"],
            kind=row["expect"] if row["text"] is not None else "no UTF-8",
            reply=text(row["text"]) if row["text"] is not None else _raw_content(base64.b64decode(row["bytes_b64"])),
        )
        for row in rows(directory, "malformed_json")
    ]


def _raw_content(content: bytes) -> Reply:
    quoted = content.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n")
    return raw(text("CONTENT").body.replace(b"CONTENT", quoted), headers={"Content-Type": "application/json"})


def recorded_answers(directory: Path) -> list[AnswerCase]:
    """Answers of real endpoints under their own status and headers, without those that the transport sets anew."""
    ours = ("content-length", "content-encoding", "transfer-encoding", "connection")
    cases = []
    for number, row in enumerate(rows(directory, "openai_responses")):
        body = json.dumps(row["body"]) if row["body_text"] is None else row["body_text"]
        headers = {name: value for name, value in row["headers"].items() if name.lower() not in ours}
        reply = raw(body.encode(), status=row["status"], headers=headers)
        cases.append(AnswerCase(name=f"{number} {row['host']}", kind=row["kind"], reply=reply))
    return cases


def damaged(plan: Mapping[str, Any]) -> dict[str, tuple[str, bool]]:
    """The plan as a model may spoil it: the text, and whether nothing of it is lost."""
    whole = json.dumps(plan, ensure_ascii=False)
    laid_out = json.dumps(plan, ensure_ascii=False, indent=2)
    tasks = plan["tasks"]
    half = json.dumps({"tasks": tasks[: max(1, len(tasks) // 2)]}, ensure_ascii=False)
    middle_of_a_task = whole[: whole.rindex('"description"') + 20]
    return {
        "as it is": (whole, True),
        "fence": (f"```json\n{laid_out}\n```", True),
        "fence without language": (f"```\n{whole}\n```", True),
        "prose around": (f"Certainly! Here is the plan:\n\n{whole}\n\nLet me know if you want changes.", True),
        "prose with braces": (f"I use the form {{id, description}} as asked.\n{laid_out}\nDone [all of it].", True),
        "reasoning before": (f"<think>First {{maybe}} one, then [two].</think>\n{whole}", True),
        "bare array": (json.dumps(tasks, ensure_ascii=False), True),
        "trailing commas": (whole.replace("]}", "],}"), True),
        "single quotes": (repr(plan), True),
        "unquoted keys": (_unquoted(laid_out), True),
        "comments": (laid_out.replace("\n", "  // as planned\n", 2), True),
        "byte order mark": (f"\ufeff{whole}", True),
        "JSON within a string": (json.dumps(whole), True),
        "last brackets missing": (whole.removesuffix("]}"), True),
        "cut in a task": (middle_of_a_task, False),
        "cut between tasks": (half.removesuffix("]}") + ", ", len(tasks) == 1),
    }


def _unquoted(laid_out: str) -> str:
    for name in ("tasks", "id", "description", "depends_on"):
        laid_out = laid_out.replace(f'"{name}":', f"{name}:")
    return laid_out
