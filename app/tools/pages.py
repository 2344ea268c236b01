"""A body off the web as readable text: what kind it is, in which letters, and what of an HTML page people see."""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urljoin

from selectolax.lexbor import LexborDocumentOptions, LexborHTMLParser, LexborNode

from app.tools.markup import plain_markup

_MEDIA_TYPE = re.compile(r"\s*([a-z0-9][a-z0-9.+-]{0,60}/[a-z0-9][a-z0-9.+-]{0,60})\s*(?:;|$)", re.I)
_CHARSET = re.compile(r"""charset\s*=\s*["']?\s*([a-z0-9_:.-]{1,40})""", re.I)
_DECLARED = re.compile(
    rb"""(?:<meta\b[^>]*?\bcharset|<\?xml\b[^>]*?\bencoding)\s*=\s*["']?\s*([a-zA-Z0-9_:.-]{1,40})""", re.I
)
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))

# What pages are written in; Python's other codecs escape, compress or take quadratic time.
_LETTERS = ("utf-8", "utf-16", "iso8859", "cp", "koi8", "shift_jis", "euc", "gb", "big5", "iso2022_jp", "mac", "tis")
# As the WHATWG's encoding standard reads them: the label says the smaller set, the page uses the larger.
_WIDER = {"ascii": "cp1252", "iso8859-1": "cp1252", "gb2312": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949"}

_HTML = ("text/html", "application/xhtml+xml")
_UNSEEN = frozenset(("head", "script", "style", "nav", "noscript", "template", "datalist"))
_UNSEEN |= frozenset(("iframe", "object", "embed", "canvas", "svg", "audio", "video"))
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
# Those with a blank line around them, and those with a line of their own.
_APART = frozenset(("blockquote", "dl", "ol", "p", "pre", "table", "ul", *_HEADINGS))
_OWN_LINES = _APART | frozenset(("address", "article", "aside", "body", "br", "caption", "dd", "details", "div", "dt"))
_OWN_LINES |= frozenset(("fieldset", "figcaption", "figure", "footer", "form", "header", "hr", "li", "main"))
_OWN_LINES |= frozenset(("section", "summary", "tbody", "tfoot", "thead", "tr"))
_FLAT_IN_CELLS = frozenset(("p", "div", "br"))
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.I)

# A parser's time grows with the square of how deep tags nest; so many, all open, still take it about a second.
_MOST_TAGS = 15_000
_LONGEST_LINK = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaType:
    """What the server calls the body; `charset` may be empty."""

    name: str
    charset: str = ""


def media_type(header: str) -> MediaType:
    """What a Content-Type header says; bytes of no kind where it says nothing sensible."""
    name = _MEDIA_TYPE.match(header)
    charset = _CHARSET.search(header)
    return MediaType(
        name=name[1].lower() if name else "application/octet-stream", charset=charset[1].lower() if charset else ""
    )


def is_text(kind: MediaType) -> bool:
    """Whether people or programs read it as letters."""
    return kind.name.startswith("text/") or kind.name.endswith(("/json", "+json", "/xml", "+xml"))


def text_of(body: bytes, kind: MediaType, *, url: str, limit: int) -> str:
    """The body as text of about `limit` characters at most: HTML as people see it, everything else as it is."""
    text = _decoded(body, kind.charset)
    return readable(text, url=url, limit=limit)[:limit] if kind.name in _HTML else text[:limit]


def _decoded(body: bytes, charset: str) -> str:
    """By its byte order mark, the header, its own declaration, or what it looks like, in this order."""
    for mark, name in _MARKS:
        if body.startswith(mark):
            return body.decode(name, "replace")
    declared = _DECLARED.search(body[:1024])
    for label in (charset, declared[1].decode("ascii") if declared else ""):
        if codec := _codec(label):
            return body.decode(codec, "replace")
    try:
        # A body that was cut may end within a letter.
        return codecs.getincrementaldecoder("utf-8")().decode(body)
    except UnicodeDecodeError:
        return body.decode("cp1252", "replace")


def _codec(label: str) -> str | None:
    try:
        name = codecs.lookup(label).name if label else ""
    except LookupError:
        return None
    name = _WIDER.get(name, name)
    return name if name.startswith(_LETTERS) else None


def readable(html: str, *, url: str, limit: int) -> str:
    """Title, headings, paragraphs, lists, rows of tables, and links as `text (URL)`, until `limit` characters."""
    markup, whole = plain_markup(html, most_tags=_MOST_TAGS)
    page = LexborHTMLParser(markup, options=LexborDocumentOptions.WO_EVENTS, scripting=True)
    base = page.css_first("base[href]")
    lines = _Lines(base=_absolute(url, (base.attributes.get("href") or "") if base else "") or url)
    title = page.css_first("head > title")
    if title is not None and (words := " ".join(title.text().split())):
        lines.whole(f"Title: {words}")
    for node, leaving in _walk(page.body):
        if node.is_text_node:
            lines.write(node.text_content or "")
        elif leaving:
            lines.leave(node)
        else:
            lines.enter(node)
        if lines.size > limit:
            break
    lines.end_line()
    if not whole and lines.size <= limit:
        lines.whole("[The page goes on, but has too many elements.]")
    return "".join(lines.done)


def _walk(root: LexborNode | None) -> Iterator[tuple[LexborNode, bool]]:
    """Every visible node in the page's order, elements once more when they are left. Without recursion: pages nest."""
    waiting = [(root, False)] if root is not None else []
    while waiting:
        node, leaving = waiting.pop()
        if leaving:
            yield node, True
            continue
        following = node.next
        if following is not None and node is not root:
            waiting.append((following, False))
        if node.is_text_node:
            yield node, False
        elif node.is_element_node and not _is_unseen(node):
            yield node, False
            waiting.append((node, True))
            if node.first_child is not None:
                waiting.append((node.first_child, False))


def _is_unseen(node: LexborNode) -> bool:
    if node.tag in _UNSEEN:
        return True
    attributes = node.attributes
    return (
        "hidden" in attributes
        or attributes.get("aria-hidden") == "true"
        or _HIDDEN.search(attributes.get("style") or "") is not None
    )


def _absolute(base: str, href: str) -> str | None:
    """The link's whole URL; None for what `http_get` could not fetch and for places within the page."""
    href = href.strip()
    if not href or href.startswith("#"):
        return None
    try:
        url = urljoin(base, href)
    except ValueError:
        return None
    return url if url.lower().startswith(("http://", "https://")) and len(url) <= _LONGEST_LINK else None


class _Lines:
    """The page's text while it grows."""

    def __init__(self, *, base: str) -> None:
        self.done: list[str] = []
        self.size = 0
        self._base = base
        self._parts: list[str] = []
        self._line = 0
        self._gap = 0
        self._prefix = ""
        self._lists: list[int | None] = []
        self._rows: list[int] = []
        self._links: list[tuple[str | None, int, int]] = []
        self._pre = 0

    def write(self, text: str) -> None:
        if self._pre:
            *whole, text = text.split("\n")
            for line in whole:
                self._parts.append(line)
                self.end_line()
        self._parts.append(text)

    def whole(self, text: str) -> None:
        """A line between blank ones."""
        self._gap = 2
        self._parts.append(text)
        self.end_line()
        self._gap = 2

    def enter(self, node: LexborNode) -> None:
        tag = node.tag or ""
        self._part(tag)
        if tag == "a":
            link = _absolute(self._base, node.attributes.get("href") or "")
            self._links.append((link, self._line, len(self._parts)))
        elif tag in ("ul", "ol"):
            self._lists.append(0 if tag == "ol" else None)
        elif tag == "li":
            self._prefix = self._bullet()
        elif tag in _HEADINGS:
            self._prefix += "#" * int(tag[1]) + " "
        elif tag == "pre":
            self._pre += 1
        elif tag == "tr":
            self._rows.append(0)
        elif tag in ("td", "th") and self._rows:
            self._rows[-1] += 1
            if self._rows[-1] > 1:
                self._parts.append(" | ")

    def leave(self, node: LexborNode) -> None:
        tag = node.tag or ""
        if tag == "a":
            self._end_link()
        self._part(tag)
        if tag in ("ul", "ol"):
            self._lists.pop()
        elif tag == "li" or tag in _HEADINGS:
            self._prefix = ""
        elif tag == "pre":
            self._pre -= 1
        elif tag == "tr":
            self._rows.pop()

    def end_line(self) -> None:
        text = "".join(self._parts)
        text = text.rstrip() if self._pre else " ".join(text.split())
        self._parts.clear()
        self._line += 1
        if not text.strip(" |"):
            return
        for piece in ("\n" * self._gap if self.done else "", self._prefix, text):
            self.done.append(piece)
            self.size += len(piece)
        self._prefix = ""
        self._gap = 1

    def _part(self, tag: str) -> None:
        """What a tag puts between what is before and what is after it."""
        if self._rows and self._rows[-1] and tag in _FLAT_IN_CELLS:
            self._parts.append(" ")
        elif tag in _OWN_LINES:
            self.end_line()
            # What is within a list stays together.
            if tag in _APART and not self._lists:
                self._gap = 2
        elif tag in ("option", "button", "label", "img", "input"):
            self._parts.append(" ")

    def _bullet(self) -> str:
        indent = "  " * (min(len(self._lists), 10) - 1)
        if not self._lists or self._lists[-1] is None:
            return indent + "- "
        self._lists[-1] += 1
        return f"{indent}{self._lists[-1]}. "

    def _end_link(self) -> None:
        link, line, start = self._links.pop()
        if link is None:
            return
        text = "".join(self._parts[start:] if line == self._line else self._parts).strip()
        if text and text != link:
            # The space that ends the link's text belongs behind its URL.
            self._parts.append(f" ({link}) " if self._parts[-1][-1:].isspace() else f" ({link})")
