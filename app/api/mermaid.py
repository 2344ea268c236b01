"""A plan as a Mermaid flowchart, safe whatever its tasks are called."""

import re
from collections.abc import Sequence

from app.domain.status import TaskStatus
from app.domain.text import shortened
from app.storage.records import TaskRecord

MEDIA_TYPE = "text/vnd.mermaid"
_MAX_LABEL_CHARACTERS = 80
_SPECIAL = re.compile(r"[#&\"<>`\\*_{}\[\]();|~]")

_COLOURS = {
    TaskStatus.PENDING: "#eeeeee",
    TaskStatus.RUNNING: "#bbdefb",
    TaskStatus.RETRYING: "#ffe0b2",
    TaskStatus.AWAITING_REVIEW: "#fff9c4",
    TaskStatus.SUCCEEDED: "#c8e6c9",
    TaskStatus.FAILED: "#ffcdd2",
    TaskStatus.SKIPPED: "#e1bee7",
    TaskStatus.CANCELLED: "#cfd8dc",
    TaskStatus.SUPERSEDED: "#d7ccc8",
}


def flowchart(tasks: Sequence[TaskRecord]) -> str:
    """The tasks with arrows from each to those that depend on it, coloured by status."""
    nodes = {task.key: f"t{n}" for n, task in enumerate(tasks)}
    lines = ["flowchart TD"]
    lines += [f'    {nodes[task.key]}["{_label(task)}"]:::{task.status.value}' for task in tasks]
    lines += [
        f"    {nodes[needed]} --> {nodes[task.key]}" for task in tasks for needed in task.depends_on if needed in nodes
    ]
    used = {task.status for task in tasks}
    lines += [f"    classDef {status.value} fill:{fill}" for status, fill in _COLOURS.items() if status in used]
    return "\n".join(lines) + "\n"


def _label(task: TaskRecord) -> str:
    text = shortened(" ".join(f"{task.key}: {task.description}".split()), _MAX_LABEL_CHARACTERS)
    # Mermaid's own entity codes: none of these can end the label or be read as markup.
    return _SPECIAL.sub(lambda found: f"#{ord(found[0])};", text)
