"""Secrets taken out of texts, in the forms that they take on their way."""

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote, quote_plus

MARK = "[redacted]"
_MIN_CHARACTERS = 4
"""What is shorter stands in too many texts by chance."""
_MIN_CERTAIN = 8
_QUOTES = "'\""
"""With both in a text, Python escapes one; where only the other is around, it does not."""
_ESCAPE = re.compile("%[0-9A-F]{2}")


class Redaction:
    """Replaces secrets of at least 4 characters by `[redacted]`.

    As they are, as JSON, Python, HTML or a URL escape them, and in base64, also where that is of a text around them
    (`user:secret`).
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets if len(secret) >= _MIN_CHARACTERS for form in _forms(secret)}
        longest_first = sorted(forms, key=lambda form: (-len(form), form))
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if forms else None

    def __call__(self, text: str) -> str:
        """The text without them."""
        return self._pattern.sub(MARK, text) if self._pattern else text


def _forms(secret: str) -> Iterator[str]:
    for kept in {secret, secret.strip()}:
        if len(kept) < _MIN_CHARACTERS:
            continue
        yield kept
        octets = kept.encode(errors="surrogatepass")
        for in_ascii in (True, False):
            as_json = json.dumps(kept, ensure_ascii=in_ascii)[1:-1]
            yield as_json
            yield json.dumps(as_json, ensure_ascii=in_ascii)[1:-1]  # JSON in a text of JSON
        for as_python in (repr(kept + _QUOTES), ascii(kept + _QUOTES), repr(octets + _QUOTES.encode())[1:]):
            escaped = as_python[1 : -len(_QUOTES) - 2]
            yield escaped
            yield escaped.replace("\\'", "'")
        yield html.escape(kept)
        yield html.escape(kept, quote=False)
        for quoted in (quote(octets), quote(octets, safe=""), quote_plus(octets)):
            yield quoted
            yield _ESCAPE.sub(lambda escape: escape[0].lower(), quoted)
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(octets).decode().rstrip("=")
            for before in range(3):
                # Of each way to lie between other octets, the characters that depend on the secret alone.
                first, end = -(-before * 8 // 6), (before + len(octets)) * 8 // 6
                certain = encode(bytes(before) + octets).decode()[first:end]
                if len(certain) >= _MIN_CERTAIN:
                    yield certain
