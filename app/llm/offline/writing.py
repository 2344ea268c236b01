"""Writing answers from what a request holds: results of tasks, the final answer, a plain chat."""

import re
from collections.abc import Mapping

from app.llm.offline.arithmetic import combined, computed
from app.llm.offline.brief import Brief
from app.llm.offline.extracts import distinct, joined, key_words, one_line, sentences, telling, words
from app.llm.offline.goals import read_goal
from app.llm.offline.results import NOTE, carried, context_text, points, sections, title, without_note

_MAX_RESULTS = 12
_MAX_LINES = 12
_OPEN = "Still to be settled: "
_LONG_GOAL = 400  # characters; a longer goal carries material, not only the wish
_ORDERING = re.compile(r"^(?:outline|order|arrange|structure|schedule|sort|rank)\b", re.I)
_CHECKING = re.compile(r"^(?:review|check|proofread|verify|validate|test)\b", re.I)
_COMPARING = re.compile(r"^(?:compare|contrast|bring)\b", re.I)
_NAMING = re.compile(r"^write a title\b", re.I)


def task_result(brief: Brief) -> str:
    """The result of a task: what its text asks, computes, and takes from the results it was given."""
    task = brief.asked
    sums = computed(task)
    if sums and not brief.results and len(task.split()) <= 25:
        return f"{joined(sums)}."
    if total := None if sums else combined(task, brief.results.values()):
        return f"{total}."
    material = _material(brief)
    lines = distinct(line for text in material.values() for line in carried(text, about=task))[:_MAX_LINES]
    lines = [*(f"{one}." for one in sums), *lines]
    paragraphs = [title(task), *_body(brief, task, material, lines), *_left_open(brief), NOTE]
    return "\n\n".join(part for part in paragraphs if part)


def final_answer(brief: Brief) -> str:
    """The answer to the goal: what the results say, nothing said twice."""
    texts = [text for text in brief.results.values() if without_note(text)]
    heading = one_line(brief.goal, 160) or "The answer"
    if not texts:
        nothing = "No results were given, so there is nothing to answer from."
        return "\n\n".join([heading, nothing, *_left_open(brief), NOTE])
    if len(texts) == 1 and NOTE not in texts[0]:
        return "\n\n".join([heading, texts[0].strip(), *_left_open(brief), NOTE])
    lines = distinct(line for text in texts[:_MAX_RESULTS] for line in carried(text, about=brief.goal, count=6))
    lines = [line for line in lines if line != heading] or ["The results hold nothing that answers this."]
    still = [line for text in texts for line in text.splitlines() if line.startswith(_OPEN)]
    left = len(texts) - _MAX_RESULTS
    more = [f"{left} more results were given and are not repeated here."] if left > 0 else []
    opening = "What the answer is made of, part by part, as far as the results go:"
    return "\n\n".join([heading, opening, *sections(lines), *distinct([*still, *_left_open(brief)]), *more, NOTE])


def reply(brief: Brief) -> str:
    """The answer to a plain chat."""
    if brief.results:
        found = [f"{label}: {one_line(without_note(text), 1_000)}" for label, text in brief.results.items()]
        return "\n".join(found) if len(found) > 1 else found[0].partition(": ")[2] or "The tool gave no text."
    if sums := computed(brief.question):
        return f"{joined(sums)}."
    lines = [f"You wrote: “{one_line(brief.question, 300)}”"]
    if len(brief.question) > 300:
        said = telling(brief.question, about=brief.question, count=4, limit=200)
        lines += ["What stands out in it:", *(f"- {line}" for line in said)]
    return "\n".join([*lines, NOTE])


def reworded(brief: Brief) -> str:
    """A failed task's description, said so that it asks for less."""
    task = brief.task or one_line(brief.goal, 500) or "Do what the goal asks"
    return f"{one_line(task, 2_000)} Work only from what is given, keep it short, and say plainly what is missing."


def _material(brief: Brief) -> dict[str, str]:
    material = dict(list(brief.results.items())[:_MAX_RESULTS])
    if brief.context:
        material["the context"] = context_text(brief.context)
    if len(brief.goal) > _LONG_GOAL:
        material["the goal"] = brief.goal
    return {label: text for label, text in material.items() if without_note(text)}


def _body(brief: Brief, task: str, material: dict[str, str], lines: list[str]) -> list[str]:
    asked = points(task)
    goal = f" for the goal “{one_line(brief.goal, 160)}”" if brief.goal else ""
    if not brief.results:
        terms = joined(key_words(f"{title(task)} {brief.goal}"))
        settle = ["\n".join(["It has to settle these points:", *(f"- {p}" for p in asked)])] if asked else []
        source = f"From {joined(list(material))}:" if material else "Computed:"
        found = ["\n".join([source, *(f"- {line}" for line in lines)])] if lines else []
        nothing = "Nothing was given to answer from, so this says what to find out and makes nothing up."
        opening = f"This part is worked out{goal}; its words to go by are {terms or 'none'}."
        return [opening, *settle, *(found or [nothing])]
    left = len(brief.results) - _MAX_RESULTS
    opening = f"Made from {joined(list(material))}{f' and {left} more results' if left > 0 else ''}{goal}."
    closing = [f"{_OPEN}{joined(asked)}."] if asked else []
    if _NAMING.match(task):
        return [opening, _naming(brief.goal, lines)]
    if _CHECKING.match(task):
        return [opening, _check(brief.goal, material), "\n".join(f"- {line}" for line in lines)]
    if _ORDERING.match(task):
        return [opening, "\n".join(f"{n}. {line}" for n, line in enumerate(lines, 1)), *closing]
    if _COMPARING.match(task) and len(brief.results) > 1:
        return [opening, "\n".join(f"- {line}" for line in lines), *_contrast(brief.goal, brief.results), *closing]
    return [opening, *sections(lines), *closing]


def _left_open(brief: Brief) -> list[str]:
    """What skipped tasks leave undone."""
    if not brief.missing:
        return []
    named = joined(list(brief.missing[:_MAX_RESULTS]))
    left = len(brief.missing) - _MAX_RESULTS
    return [f"{_OPEN}what {named}{f' and {left} more tasks' if left > 0 else ''} would have given."]


def _naming(goal: str, lines: list[str]) -> str:
    topic = read_goal(goal).topic
    heads = [line.partition(": ")[0] for line in lines[:4]]
    # "The core ideas" stands lower case inside a sentence, "PostgreSQL" does not.
    heads = [head if head.split()[0] in goal else head[:1].lower() + head[1:] for head in heads if head.strip()]
    return f"- Title: {topic[:1].upper()}{topic[1:]}\n- Summary: It covers {joined(heads) or topic}."


def _check(goal: str, material: dict[str, str]) -> str:
    text = "\n".join(without_note(t) for t in material.values())
    held = set(words(text))
    terms = key_words(goal, 12)
    missing = [term for term in terms if term.lower() not in held]
    lines = sentences(text)
    repeated = len(lines) - len(distinct(lines))
    absent = f", and these do not: {joined(missing)}" if missing else ""
    again = "One line repeats" if repeated == 1 else f"{repeated or 'No'} lines repeat"
    there = f"{len(terms) - len(missing)} stand in the {len(text.split())} words that were checked{absent}."
    return f"Of {len(terms)} telling words of the goal, {there} {again} another."


def _contrast(goal: str, results: Mapping[str, str]) -> list[str]:
    """Words that all the texts share, and those that only one of them has."""
    usual = set(words(goal))
    said = {label: words("\n".join(carried(text, about=goal))) for label, text in list(results.items())[:_MAX_RESULTS]}
    held = {label: [word for word in terms if word not in usual] for label, terms in said.items()}
    common = set.intersection(*(set(terms) for terms in held.values()))
    shared = [term for term in next(iter(held.values())) if term in common][:6]
    found = [f"Common to all: {joined(shared)}."] if shared else []
    for label, terms in held.items():
        others = {term for other, theirs in held.items() if other != label for term in theirs}
        if own := [term for term in terms if term not in others and not term.isdigit()][:5]:
            found.append(f"Only in {label}: {joined(own)}.")
    return [" ".join(found)] if found else []
