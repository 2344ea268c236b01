"""HTML written anew with little in it, so that no page can keep a parser busy for minutes.

Parsers take time with the square of a tag's attributes and of how deep tags nest; a hostile page of 2 MiB costs
minutes. What is written here holds so many tags at most, each with the few attributes that readers need. It matters
little where this reads a broken page otherwise than browsers do: parsers see only what was written.
"""

import re

# Every branch can end where the page ends: none of them reads on in vain and begins anew one character later.
_TOKEN = re.compile(
    r"""
    <(?=[a-z!?/])(?:
    !--.*?(?:-->|\Z)
    | (?P<raw>script|style|xmp|iframe|noembed|noframes|noscript)(?=[\s/>])[^>]*+(?:>|\Z)
        .*?(?:</(?P=raw)(?=[\s/>])[^>]*+(?:>|\Z)|\Z)
    | (?P<end>/?)(?P<name>[a-z][^\s/>]*+)(?P<attributes>(?:=\s*+"[^"]*+"|=\s*+'[^']*+'|[^>])*+)(?:>|\Z)
    | [!?/][^>]*+(?:>|\Z)
    )
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)
_ATTRIBUTE = re.compile(r"""([^\s"'>/=][^\s>/=]*)(?:\s*+=\s*+(?:"([^"]*)"|'([^']*)'|([^\s>]*)))?""")
_KEPT = ("href", "hidden", "aria-hidden", "style")
_MOST_OF_A_TAG = 8000


def plain_markup(html: str, *, most_tags: int) -> tuple[str, bool]:
    """The page with tags, text and the attributes of use; and whether it is the whole page."""
    written: list[str] = []
    opened = 0
    end = 0
    for token in _TOKEN.finditer(html):
        written.append(html[end : token.start()].replace("<", "&lt;"))
        end = token.end()
        name = token["name"]
        if name is None:
            continue
        if token["end"]:
            written.append(f"</{name}>")
            continue
        opened += 1
        if opened > most_tags:
            return "".join(written), False
        written.append(f"<{name}{_attributes(token['attributes'])}>")
    written.append(html[end:].replace("<", "&lt;"))
    return "".join(written), True


def _attributes(text: str) -> str:
    found: dict[str, str] = {}
    for attribute in _ATTRIBUTE.finditer(text[:_MOST_OF_A_TAG]):
        name = attribute[1].lower()
        if name in _KEPT:
            value = attribute[2] or attribute[3] or attribute[4] or ""
            found.setdefault(name, f' {name}="{value.replace(chr(34), "&quot;")}"')
    return "".join(found.values()) + ("/" if text.endswith("/") else "")
