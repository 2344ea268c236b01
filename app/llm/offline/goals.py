"""Reading a goal: its family, what it is about, the parts it lists, and whether one call settles it."""

import re
from dataclasses import dataclass
from enum import StrEnum

from app.llm.offline.arithmetic import expressions
from app.llm.offline.extracts import one_line


class Family(StrEnum):
    """The sort of work that a goal asks for."""

    WRITE = "write"
    COMPARE = "compare"
    TRAVEL = "travel"
    PLAN = "plan"
    HOW_TO = "how to"
    STUDY = "study"
    BUILD = "build"
    STAGES = "stages"
    GENERAL = "general"


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """A goal as read: `topic` without the words that ask, `form` of the text to write, `purpose` of a choice."""

    text: str
    family: Family
    topic: str
    form: str = "text"
    purpose: str = ""
    parts: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()


_MAX_PARTS = 12
_TEXTS = (
    "blog post|blogpost|post|article|essay|report|story|poem|e-?mail|letter|guide|tutorial|newsletter|speech|"
    "press release|documentation|readme|summary|proposal|song|paper|chapter|book|description|review|introduction|"
    "presentation|white ?paper|announcement|overview|brief|memo|manual|cover letter|slogan|thread|page|faq|recipe"
)
_SYSTEMS = (
    r"\b(?:code|script|program|function|app|application|api|library|tool|website|web ?site|service|bot|game|cli)\b"
)
_POLITE = re.compile(
    r"^(?:please|kindly|hi|hello|(?:can|could|would) you|help me(?: to)?|"
    r"i(?: want| need|'d like| would like)(?: you)?(?: to)?|let's|let us)[\s,!:]+",
    re.I,
)
_WRITE = re.compile(
    rf"^(?:write|draft|compose|create|prepare|produce|make|author)\s+(?:me\s+|us\s+)?(?:(?:an?|the|some|\d+)\s+)?"
    rf"(?P<form>(?:[\w-]+\s+){{0,3}}?(?:{_TEXTS})s?)\b[\s,:]*"
    r"(?:(?:about|on|for|of|regarding|covering|explaining|describing|titled|called|that explains|to)\s+)?"
    r"(?P<topic>.*)$",
    re.I,
)
_VERBS: tuple[tuple[Family, re.Pattern[str]], ...] = (
    (Family.HOW_TO, re.compile(r"^how (?:to|do i|do we|can i|can we|should i|should we)\s+", re.I)),
    (
        Family.COMPARE,
        re.compile(
            r"^(?:compare|choose|decide|pick|select|evaluate|rank|recommend|should (?:i|we) \w+|which(?: of| one)?|"
            r"(?:what (?:is|are) )?the (?:main )?differences? between)\s+(?:the\s+)?(?:between\s+|from\s+|among\s+)?",
            re.I,
        ),
    ),
    (Family.PLAN, re.compile(r"^(?:plan|organi[sz]e|schedule|arrange|prepare|host|coordinate|set up)\s+", re.I)),
    (
        Family.BUILD,
        re.compile(
            r"^(?:build|implement|develop|design|code|program|create|make|write|deploy|refactor|migrate|add|fix)\s+",
            re.I,
        ),
    ),
    (
        Family.STUDY,
        re.compile(
            r"^(?:analy[sz]e|research|investigate|explain|describe|summari[sz]e|study|explore|assess|review|examine|"
            r"identify|outline|discuss|find out|tell me about|(?=why |how |what )|report on|write about)\s*",
            re.I,
        ),
    ),
)
_TRAVEL = re.compile(r"\b(?:trips?|travel|vacation|holiday|itinerary|weekend in|journey|tour)\b", re.I)
_AGAINST = re.compile(r"\s+(?:vs\.?|versus)\s+|\bdifferences? between\b|\bcompar(?:e|ing|ison)\b", re.I)
_PURPOSE = re.compile(r"\s+(?:for|as|in|when|regarding|with respect to|in terms of|based on|given)\s+", re.I)
_ITEM = re.compile(
    r"\s*[,;、，]\s*(?:(?:and|or)\s+)?|\s+(?:vs\.?|versus|and|or|against|(?:compared )?(?:to|with)|&)\s+", re.I
)
_LISTED = re.compile(r"\s*[,;、，]\s*(?:(?:and|or|und|et|y)\s+)?|\s+(?:and|or|&|und|et|y)\s+", re.I)
_BULLET = re.compile(r"^[ \t]*(?:[-*•]|\d{1,2}[.)])[ \t]+(\S.*)$", re.M)
_BEFORE = re.compile(
    r"(?:^|\s)(?:about|on|for|in|of|between|from|with|to|covering|including|like|such as|at|by|across|against)\s+|:\s+",
    re.I,
)
_AFTER = re.compile(_BEFORE.pattern + r"|\s+(?:is|are|was|were|that|which)\s+", re.I)
_CLAUSE = re.compile(r"\b(?:is|are|was|were|be|has|have|had|will|would|can|if|i|you|what|which|who|that)\b|…", re.I)
_STAGE = re.compile(r"[\s,;.]+(?:and\s+)?(?:then|after that|afterwards|finally|lastly|next)[\s,]+", re.I)
_ORDER = re.compile(
    r"(?:add|analy[sz]e|build|buy|calculate|call|check|choose|classify|clean|collect|combine|compare|compute|convert|create|"
    r"describe|design|draft|enhance|explain|extract|fetch|find|gather|generate|get|identify|list|make|pick|plan|read|"
    r"report|research|review|search|send|summari[sz]e|tell|test|translate|write)\s+\S",
    re.I,
)
_CLOSING = re.compile(r"(?:combine|create|draft|generate|make|report|review|send|summari[sz]e|write)\b", re.I)
_NO_PART = frozenset({"etc", "so on", "more", "others", "its", "their", "it", "them", "vice versa", "not"})
_QUESTION = re.compile(
    r"^(?:what(?:'s| is| was| are| were)|who|whom|whose|when|where|which|is|are|was|were|does|do|did|can|has|have|"
    r"how (?:many|much|old|far|tall|long|high|big|deep|often)|define|translate|spell|convert)\b",
    re.I,
)
_LARGE_QUESTION = re.compile(
    r"\b(?:differences?|compare|comparison|versus|vs|pros|advantages|why|how does|better|best|"
    r"steps?|ways|strategy|plan)\b",
    re.I,
)


def read_goal(text: str) -> Goal:
    """The goal as read; any text gives one."""
    line = one_line(text, 600)
    asked = line
    for _ in range(3):
        asked = _POLITE.sub("", asked)
    stages = [stage.strip(" .,;") for stage in _STAGE.split(asked)]
    if len(stages) > 1 and all(stages):
        return _staged(line, asked, _orders(stages[0]) or _shared_verb(stages[0]), stages[1:])
    written = _WRITE.match(asked)
    if written and not re.search(_SYSTEMS, written["form"], re.I):
        topic = _topic(written["topic"], "its subject")
        return Goal(
            text=line, family=Family.WRITE, topic=topic, form=written["form"].lower(), parts=tuple(_parts(text, topic))
        )
    family, rest = _family(asked)
    if family is Family.COMPARE:
        return _comparison(line, rest)
    if family in (Family.GENERAL, Family.STUDY) and (orders := _orders(asked)):
        # "Research X and write a report" is one thing after the other, "buy milk and call mum" is not.
        last = orders[-1:] if _CLOSING.match(orders[-1]) else []
        return _staged(line, asked, orders[: len(orders) - len(last)], last or ["put the results together"])
    if family in (Family.PLAN, Family.HOW_TO) and _TRAVEL.search(asked):
        family = Family.TRAVEL
    topic = _topic(rest, line)
    return Goal(text=line, family=family, topic=topic, parts=tuple(_parts(text, topic)))


def settled_by_one_call(text: str) -> bool:
    """Whether the goal is a sum, a short question, or a sentence to translate."""
    line = " ".join(text[:2_000].split())
    if len(line) > 160 or _STAGE.search(line):
        return False
    count = len(line.split())
    if expressions(line) and count <= 14:
        return True
    if _LARGE_QUESTION.search(line):
        return False
    question = line.endswith(("?", "？"))
    if question and count <= 6 and len(line) <= 60 and not re.match(r"(?:how|why)\b", line, re.I):
        return True
    asks = _QUESTION.match(line)
    if asks is None:
        return False
    # "Translate" and "define" need no question mark; a sentence to translate may hold anything.
    ordered = asks[0].lower() in ("translate", "define", "spell", "convert")
    return count <= 20 if ordered else question and count <= 12 and len(_LISTED.split(line)) < 3


def listed(text: str) -> list[str]:
    """The entries of the first list in the text: its bullets, or `X, Y and Z`. Empty where there is none."""
    bullets = [one_line(entry, 80) for entry in _BULLET.findall(text[:5_000])]
    if len(bullets) > 1:
        return list(dict.fromkeys(bullets))[:_MAX_PARTS]
    for sentence in re.split(r"(?<=[.!?])\s+|\n", text[:600]):
        entries = [entry.strip(" .!?\"'()") for entry in _LISTED.split(sentence.strip(" .!?"))]
        if len(entries) < 2:
            continue
        entries[0] = _BEFORE.split(entries[0])[-1] if len(entries[0].split()) > 2 else entries[0]
        entries[-1] = _AFTER.split(entries[-1])[0] or entries[-1]
        entries = [entry.strip() for entry in entries if entry.strip() and entry.strip().lower() not in _NO_PART]
        longest = 3 if len(entries) == 2 else 6
        if len(entries) > 1 and all(_is_name(entry, longest) for entry in entries):
            return list(dict.fromkeys(entries))[:_MAX_PARTS]
    return []


def _staged(line: str, asked: str, parts: list[str], stages: list[str]) -> Goal:
    return Goal(
        text=line,
        family=Family.STAGES,
        topic=_topic(asked, line),
        parts=tuple(one_line(part, 200) for part in parts[:_MAX_PARTS]),
        stages=tuple(one_line(stage, 200) for stage in stages),
    )


def _orders(text: str) -> list[str]:
    """The clauses of a text in which each tells to do something; empty where it is not so."""
    clauses = [clause.strip(" .!?") for clause in _LISTED.split(text)]
    return clauses if len(clauses) > 1 and all(_ORDER.match(clause) for clause in clauses) else []


def _shared_verb(text: str) -> list[str]:
    """`Research X and Y` as `Research X`, `Research Y`."""
    verb, _, rest = text.partition(" ")
    return [f"{verb} {part}" for part in listed(rest)] or [text]


def _is_name(entry: str, longest: int) -> bool:
    return len(entry.split()) <= longest and len(entry) <= 80 and _CLAUSE.search(entry) is None


def _parts(text: str, topic: str) -> list[str]:
    parts = listed(text) if "\n" in text.strip() else []
    parts = parts or listed(topic)
    return parts if len(parts) > 1 else []


def _family(asked: str) -> tuple[Family, str]:
    """The family and what is left without the words that show it."""
    for family, pattern in _VERBS:
        match = pattern.match(asked)
        if match is None:
            continue
        rest = asked[match.end() :]
        if family is Family.STUDY and _AGAINST.search(asked):
            return Family.COMPARE, rest
        if family is Family.COMPARE and not (rest and _comparable(asked)):
            continue
        return family, rest
    return (Family.COMPARE if _AGAINST.search(asked) else Family.GENERAL), asked


def _comparable(asked: str) -> bool:
    return re.match(r"which", asked, re.I) is None or re.search(r"\bor\b", asked, re.I) is not None


def _comparison(line: str, rest: str) -> Goal:
    rest = re.split(r":\s+|\bbetter,?\s+|\bdifferences? between\s+|\bcompar(?:e|ing)\s+", rest, flags=re.I)[-1].strip(
        " ?.!"
    )
    things, *purpose = _PURPOSE.split(rest, maxsplit=1)
    entries = [entry.strip(" .?!\"'()") for entry in _ITEM.split(things)]
    entries = [one_line(e, 80) for e in entries if e and e.lower() not in _NO_PART]
    if len(entries) < 2 or any(len(entry.split()) > 6 for entry in entries):
        entries = []
    return Goal(
        text=line,
        family=Family.COMPARE,
        topic=_topic(things if entries else rest, line),
        purpose=one_line(purpose[0], 100).strip(" .?!") if purpose and entries else "",
        parts=tuple(dict.fromkeys(entries))[:_MAX_PARTS],
    )


def _topic(text: str, line: str) -> str:
    sentence = re.split(r"(?<=[.!?])\s+", text.strip(), maxsplit=1)[0]
    return one_line(sentence.strip(" .!?:\"'"), 90) or one_line(line.strip(" .!?"), 90) or "the goal"
