"""Taking from a text what bears on a question: its sentences, its key words, its most telling lines."""

import re
from collections.abc import Collection, Iterable

from app.domain.text import shortened

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*|\n+")
_MARKUP = re.compile(r"^(?:[#>*•\-\s]+|\d{1,3}[.)]\s+)|\*\*")
_WORD = re.compile(r"[^\W_][\w+#'./-]*[\w+#]|[^\W_]")
_COMMON_WORDS = """
a about after all also an and any are as at be because been before being between both but by can could did do
does done each every for from get give given good has have how i if in into is it its just let like list look
make many may me more most much must my need needs no not of off on one only or other our out over part parts
please point points same say see shall should show so some such task tell than that the their them then there
these they things this those to too two under up us use using want was way we well were what when where which
while who why will with without work would you your und der die das ein eine für mit el la los las un una de
del y en que por para le les des une et du pour dans
"""
_COMMON = frozenset(_COMMON_WORDS.split())


def one_line(text: str, limit: int) -> str:
    """The text on one line, cut at a word where it is longer than `limit` characters."""
    line = " ".join(text[: 4 * limit + 200].split())
    if len(line) <= limit:
        return line
    head, space, _ = line[: limit - 1].rpartition(" ")
    return (head if space and len(head) > limit // 2 else line[: limit - 1]).rstrip(" ,;:") + "…"


def sentences(text: str) -> list[str]:
    """Sentences and lines without their list marks."""
    pieces = (_MARKUP.sub("", piece).strip() for piece in _SENTENCE_END.split(text))
    return [piece for piece in pieces if piece]


def words(text: str) -> list[str]:
    """The words that carry meaning, lower case, in order, each once."""
    found = (word.lower() for word in _WORD.findall(text))
    return list(dict.fromkeys(word for word in found if word not in _COMMON))


def key_words(text: str, limit: int = 6) -> list[str]:
    """Up to `limit` words of the text that carry meaning, spelled as the text first spells them."""
    found: dict[str, str] = {}
    for word in _WORD.findall(text[:5_000]):
        if word.lower() not in _COMMON and len(word) > 1:
            found.setdefault(word.lower(), shortened(word, 40))
    return list(found.values())[:limit]


def telling(text: str, *, about: str, count: int, limit: int, without: Collection[str] = ()) -> list[str]:
    """The `count` sentences that share most words with `about`, in their order, each within `limit` characters."""
    wanted = set(words(about))
    candidates = distinct(s for s in sentences(text) if s not in without)
    # Of equals the earlier: texts say first what they are about.
    best = sorted(range(len(candidates)), key=lambda n: (-len(wanted.intersection(words(candidates[n]))), n))[:count]
    return [one_line(candidates[n], limit) for n in sorted(best)]


def distinct(lines: Iterable[str]) -> list[str]:
    """The lines without those that say again, in the same words, what one before them said."""
    seen: set[frozenset[str]] = set()
    kept = []
    for line in lines:
        said = frozenset(words(line)) or frozenset([line])
        if said not in seen:
            seen.add(said)
            kept.append(line)
    return kept


def joined(names: Collection[str], word: str = "and") -> str:
    """`a, b and c`."""
    names = list(names)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}" if names else ""
