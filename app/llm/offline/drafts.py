"""What each family of goals calls for: parallel branches that name its parts, and the steps that join them."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from app.llm.offline.extracts import joined, one_line
from app.llm.offline.goals import Family, Goal

_MAX_STAGES = 4


@dataclass(frozen=True, slots=True)
class Branch:
    """A task that waits for nothing: `VERB PART REST`, so that neighbours can share one task."""

    verb: str
    part: str
    rest: str


@dataclass(frozen=True, slots=True)
class Step:
    """A task after all branches, or after the steps numbered in `after`."""

    text: str
    after: tuple[int, ...] = ()


Draft = tuple[list[Branch], list[Step]]


def draft(goal: Goal) -> Draft:
    """The branches and steps for the goal, as many as it takes."""
    return _DRAFTS[goal.family](goal)


def _per_part(goal: Goal, verb: str, rest: str, otherwise: list[Branch]) -> list[Branch]:
    return [Branch(verb, part, rest) for part in goal.parts] or otherwise


def _write(goal: Goal) -> Draft:
    form, topic = goal.form, goal.topic
    branches = _per_part(
        goal,
        "Research",
        f" for the {form} on {topic}: what it is, what matters about it, and one example.",
        [
            Branch(
                "Research",
                f"the core ideas of {topic}",
                ": what they mean, how they fit together, and why they matter.",
            ),
            Branch(
                "Gather", f"practical examples of {topic}", ": the simplest case, a usual one, and one that goes wrong."
            ),
            Branch(
                "List", f"common questions and mistakes about {topic}", ": what readers get wrong, and what helps them."
            ),
        ],
    )
    return branches, [
        Step(f"Outline the {form} on {topic}: the order of its sections, and the points that each makes."),
        Step(f"Draft the {form} on {topic} along the outline, every section in plain words.", (0,)),
        Step(f"Review the draft of the {form} on {topic}: gaps, repetition, and anything off the subject.", (1,)),
        Step(f"Write a title and a two-sentence summary for the {form} on {topic}.", (1,)),
    ]


def _compare(goal: Goal) -> Draft:
    purpose = f" for {goal.purpose}" if goal.purpose else ""
    topic = joined(list(goal.parts)) if goal.parts else goal.topic
    branches = _per_part(
        goal,
        "Look into",
        f"{purpose}: strengths, weaknesses, costs, and limits.",
        [
            Branch("List", f"the choices there are in {topic}", ": what each is, and what sets it apart."),
            Branch("Gather", f"what is known about {topic}", ": strengths, weaknesses, and costs."),
        ],
    )
    branches.append(
        Branch("Settle", f"the criteria for {goal.purpose or f'judging {topic}'}", ": what matters, and how much.")
    )
    return branches, [
        Step(f"Compare {topic}{purpose} criterion by criterion: where each is ahead, and by what."),
        Step(f"Recommend a choice on {topic}{purpose}: the reasons, and when another choice would be better.", (0,)),
    ]


def _travel(goal: Goal) -> Draft:
    topic = goal.topic
    branches = _per_part(
        goal,
        "Plan the part on",
        f" of {topic}: what to do there, how long it takes, and what it costs.",
        [
            Branch(
                "Work out", f"how to get there and where to stay for {topic}", ": choices, times, and what to book."
            ),
            Branch("Choose", f"the sights and activities for {topic}", ": must-sees, opening hours, and time needed."),
            Branch("Find", f"where and what to eat on {topic}", ": choices near the sights, for each part of the day."),
            Branch("Estimate", f"the costs of {topic}", ": travel, stay, food, and entries."),
        ],
    )
    return branches, [
        Step(f"Order everything into a day-by-day schedule for {topic}, with room to rest."),
        Step(f"Write a booking and packing checklist for {topic}.", (0,)),
        Step(f"Name what could go wrong on {topic}: a second plan for bad weather, closures, and delays.", (0,)),
    ]


def _plan(goal: Goal) -> Draft:
    topic = goal.topic
    branches = _per_part(
        goal,
        "Work out",
        f" for {topic}: what is needed, who does it, and what it costs.",
        [
            Branch("Settle", f"the aims and limits of {topic}", ": date, place, people, and money."),
            Branch("List", f"what {topic} needs", ": things, services, and permissions."),
            Branch("Work out", f"who is involved in {topic}", ": who does what, and who has to know."),
        ],
    )
    return branches, [
        Step(f"Order the work for {topic} into a schedule: steps, dates, and who answers for each."),
        Step(f"Name the risks of {topic}: what could go wrong, and what then.", (0,)),
        Step(f"Write a checklist for {topic} from the schedule.", (0,)),
    ]


def _how_to(goal: Goal) -> Draft:
    topic = goal.topic
    branches = _per_part(
        goal,
        "Describe",
        f" as part of how to {topic}: what to do, and how to tell that it is done.",
        [
            Branch("List", f"what is needed to {topic}", ": things, skills, and time."),
            Branch("Describe", f"the steps to {topic}", ": what to do, and how to tell that each is done."),
            Branch(
                "List", f"common mistakes when people {topic}", ": what goes wrong, dangers, and how to avoid them."
            ),
        ],
    )
    return branches, [
        Step(f"Order the steps to {topic} into one numbered guide, each with what it needs."),
        Step(f"Review the guide to {topic}: missing steps, wrong order, and unclear words.", (0,)),
    ]


def _study(goal: Goal) -> Draft:
    topic = goal.topic
    if re.match(r"(?:how|why|what|when|where|who|whether)\b", topic, re.I):
        topic = f"the question {topic}"
    branches = _per_part(
        goal,
        "Study",
        f" with regard to {topic}: what it is, how it works, and what it shows.",
        [
            Branch("Describe", f"the background of {topic}", ": the terms, and what came before."),
            Branch("Work out", f"the main parts of {topic}", ": how they act, and how they depend on each other."),
            Branch("Gather", f"examples and evidence on {topic}", ": what is shown, and how sure it is."),
            Branch("Note", f"limits and open questions of {topic}", ": where views differ, and what is not known."),
        ],
    )
    return branches, [
        Step(f"Bring the findings on {topic} together: what they agree on, and where they differ."),
        Step(f"Write the explanation of {topic} in plain words, from the findings.", (0,)),
    ]


def _build(goal: Goal) -> Draft:
    topic = goal.topic
    branches = _per_part(
        goal,
        "Specify",
        f" for {topic}: what it does, what it takes in and gives out, and how it can fail.",
        [
            Branch("List", f"the requirements of {topic}", ": what it must do, for whom, and within what limits."),
            Branch(
                "Define", f"the data and interfaces of {topic}", ": what goes in, what comes out, and what is kept."
            ),
            Branch("Look into", f"ways to build {topic}", ": the choices, and what speaks for and against each."),
        ],
    )
    return branches, [
        Step(f"Design {topic}: its parts, and how they work together."),
        Step(f"Write the code of {topic} after the design.", (0,)),
        Step(f"Write the tests of {topic} after the design: the usual cases, and the ways to fail.", (0,)),
        Step(f"Check {topic} against its tests and write down how to use it.", (1, 2)),
    ]


def _stages(goal: Goal) -> Draft:
    branches = []
    for part in goal.parts:
        verb, _, rest = part.partition(" ")
        branches.append(Branch(_capital(verb), rest, "."))
    if len(branches) == 1:
        branches.append(
            Branch("Settle how to tell a good result of", f"“{one_line(goal.text, 200)}”", ": what it must hold.")
        )
    stages = [_capital(stage) for stage in goal.stages]
    stages = (
        [*stages[: _MAX_STAGES - 1], ". Then ".join(stages[_MAX_STAGES - 1 :])] if len(stages) > _MAX_STAGES else stages
    )
    return branches, [Step(f"{stage}.", (n - 1,) if n else ()) for n, stage in enumerate(stages)]


def _general(goal: Goal) -> Draft:
    topic = f"“{goal.topic}”"
    branches = _per_part(
        goal,
        "Work on",
        f" as a part of {topic}: what it calls for, and what comes of it.",
        [
            Branch("Say", f"what {topic} asks for", ": the terms, and what a good result holds."),
            Branch("List", f"what is given and what is missing for {topic}", ": facts, limits, and open questions."),
            Branch("Find", f"two or three ways to approach {topic}", ": what speaks for and against each."),
        ],
    )
    return branches, [
        Step(f"Work out the result for {topic} from what was found."),
        Step(f"Check the result for {topic}: gaps, mistakes, and anything beside the point.", (0,)),
    ]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


_DRAFTS: Mapping[Family, Callable[[Goal], Draft]] = {
    Family.WRITE: _write,
    Family.COMPARE: _compare,
    Family.TRAVEL: _travel,
    Family.PLAN: _plan,
    Family.HOW_TO: _how_to,
    Family.STUDY: _study,
    Family.BUILD: _build,
    Family.STAGES: _stages,
    Family.GENERAL: _general,
}
