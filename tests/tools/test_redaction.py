"""Secrets in the forms that programs give to them, taken out of texts."""

import html
import json
from collections.abc import Callable

import pytest

from app.tools.redaction import MARK, Redaction

SECRETS = ("plain-token", "a'b\\cde", 'q"u"o"te', "tab\tnew\nline", "all\"\\ü/+&=%41 <'>-of it")
FORMS: dict[str, Callable[[str], str]] = {
    "Python": repr,
    "Python in ASCII": ascii,
    "octets": lambda secret: repr(secret.encode()),
    "an error of a key": lambda secret: str(KeyError(secret)),
    "a dictionary": lambda secret: repr({"key": secret}),
    "with one quote": lambda secret: repr(f"{secret}'"),
    "with the other": lambda secret: repr(f'{secret}"'),
    "HTML": html.escape,
    "HTML's text": lambda secret: html.escape(secret, quote=False),
    "JSON": json.dumps,
    "JSON in JSON": lambda secret: json.dumps(json.dumps({"key": secret})),
    "JSON in JSON, in letters": lambda s: json.dumps(json.dumps({"key": s}, ensure_ascii=False), ensure_ascii=False),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_taken_out_in_each_form(secret: str, form: Callable[[str], str]) -> None:
    around = form("????").replace("????", MARK)
    shown = Redaction([secret])(form(secret))
    assert MARK in shown
    assert len(shown) <= len(around) + 2, shown  # with quotes that the secret's own have brought about
