"""Pages as readable text: what people see of them, in the letters they were written in."""

import codecs

import pytest

from app.tools.pages import MediaType, media_type, readable, text_of

URL = "https://site.example/a/b"


def read(html: str, limit: int = 100_000) -> str:
    return readable(html, url=URL, limit=limit)


def test_title_headings_paragraphs_and_breaks() -> None:
    html = "<title> The\n Title </title><body><h1>One</h1><p>a  b\nc</p><p>d<br>e<h3>Two <b>bold</b></h3>f"
    assert read(html) == "Title: The Title\n\n# One\n\na b c\n\nd\ne\n\n### Two bold\n\nf"


def test_lists_keep_their_nesting_and_numbers() -> None:
    html = "<ul><li>a<li><p>b</p><ol><li>c</li><li>d</li></ol></li></ul>after"
    assert read(html) == "- a\n- b\n  1. c\n  2. d\nafter"


def test_a_row_of_a_table_is_a_line() -> None:
    html = "<table><tr><th>A<th>B<tr><td><p>1</p><p>2</p><td>3<br>4</table>"
    assert read(html) == "A | B\n1 2 | 3 4"


def test_preformatted_text_keeps_its_lines() -> None:
    assert read("<pre>a\n  b   c\nd</pre>e   f") == "a\n  b   c\nd\n\ne f"


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("see <a href='/x?a=1&amp;b=2'>this</a>.", "see this (https://site.example/x?a=1&b=2)."),
        ("<a href=c>d </a>e", "d (https://site.example/a/c) e"),
        ("<a href='//other.example/'>o</a>", "o (https://other.example/)"),
        ("<a href='#part'>p</a>", "p"),
        ("<a href='javascript:x()'>j</a>", "j"),
        ("<a href='mailto:a@b.example'>m</a>", "m"),
        ("<a href='http://['>n</a>", "n"),
        ("<a>plain</a>", "plain"),
        ("<a href=/i><img src=i></a>x", "x"),
        ("<a href='https://e.example/'>https://e.example/</a>", "https://e.example/"),
        ("<base href='https://base.example/q/'><a href=r>s</a>", "s (https://base.example/q/r)"),
    ],
)
def test_links_are_shown_behind_their_text(html: str, text: str) -> None:
    assert read(html) == text


@pytest.mark.parametrize(
    "unseen",
    [
        "<script>if (1 < 2) document.write('<p>UNSEEN</p>')</script>",
        "<style>UNSEEN</style>",
        "<nav><ul><li>UNSEEN</ul></nav>",
        "<noscript>UNSEEN<p>UNSEEN</p></noscript>",
        "<template><p>UNSEEN</p></template>",
        "<div hidden>UNSEEN</div>",
        "<p style='color: red; DISPLAY : none'>UNSEEN</p>",
        "<p style='visibility:hidden'>UNSEEN</p>",
        "<span aria-hidden=true>UNSEEN</span>",
        "<svg><text>UNSEEN</text></svg>",
        "<iframe>UNSEEN</iframe>",
        "<!-- UNSEEN <p>UNSEEN</p> -->",
        "<p title='UNSEEN > UNSEEN'></p>",
        "<!doctype html><?xml UNSEEN?>",
    ],
)
def test_what_people_do_not_see_is_left_out(unseen: str) -> None:
    assert read(f"<body><p>before{unseen}</p><p>after</p>").split() == ["before", "after"]


def test_a_class_or_title_that_says_hidden_hides_nothing() -> None:
    assert read("<p class='a hidden b' title='hidden' data-hidden>seen</p>") == "seen"


def test_entities_and_angle_brackets_are_read_as_text() -> None:
    assert read("<p>1 < 2 &amp;&amp; 3 &gt; 2 &lt;b&gt;</p>") == "1 < 2 && 3 > 2 <b>"


@pytest.mark.parametrize(
    "piece",
    ["<div>", "<ul><li>", "<a href=x><b>", "<table><tr><td>x", "<b><i><u><p>", "<svg><g>", "<meta ", "<!--", "<script",
     "</script", "<", "<a title='", '<p "', "<pre>\n", "=\"='", "<p a=", "<select><option>"],
)  # fmt: skip
def test_a_hostile_page_of_two_mebibytes_is_read_all_the_same(piece: str) -> None:
    """Each took minutes or more before the page was written anew; the test's time-out is the measure."""
    page = piece * (2 * 1024 * 1024 // len(piece)) + "<p>"
    assert len(text_of(page.encode(), MediaType(name="text/html"), url=URL, limit=1000)) <= 1000


def test_a_tag_with_very_many_attributes_is_read_all_the_same() -> None:
    page = "<p " + " ".join(f"a{number}=1" for number in range(180_000)) + ">seen"
    assert read(page) == "seen"


def test_a_page_with_too_many_elements_says_so() -> None:
    assert read("<i>x</i>" * 20_000).endswith("[The page goes on, but has too many elements.]")


def test_reading_stops_soon_after_the_limit() -> None:
    assert len(read("<p>word</p>" * 10_000, limit=100)) < 120


@pytest.mark.parametrize(
    ("body", "header"),
    [
        ("grün €".encode(), "text/plain; charset=utf-8"),
        ("grün €".encode("cp1252"), "text/plain; charset=iso-8859-1"),
        ("grün €".encode("cp1252"), "text/plain; charset=US-ASCII"),
        ("grün €".encode("iso8859-15"), 'text/plain; charset="ISO-8859-15"'),
        ("grün €".encode("utf-16"), "text/plain"),
        (codecs.BOM_UTF8 + "grün €".encode(), "text/plain; charset=iso-8859-1"),
        ("grün €".encode(), "text/plain"),
        ("grün €".encode("cp1252"), "text/plain"),
        ("<meta charset=windows-1252>grün €".encode("cp1252"), "text/html"),
        ("<meta charset=windows-1252>grün €".encode(), "text/html; charset=utf-8"),
        (
            "<meta http-equiv='Content-Type' content='text/html; charset=windows-1252'>grün €".encode("cp1252"),
            "text/html",
        ),
        ("grün €".encode(), "text/plain; charset=no-such-thing"),
        ("grün €".encode(), "text/plain; charset=rot13"),
        ("grün €".encode(), "text/plain; charset=unicode_escape"),
        ("grün €".encode(), "text/plain; charset=punycode"),
    ],
)
def test_letters_are_read_as_they_were_written(body: bytes, header: str) -> None:
    assert text_of(body, media_type(header), url=URL, limit=1000) == "grün €"


def test_cyrillic_and_japanese_pages_are_read() -> None:
    for text, charset in (
        ("Привет", "koi8-r"),
        ("Привет", "windows-1251"),
        ("日本語", "shift_jis"),
        ("日本語", "euc-jp"),
    ):
        body = text.encode(charset)
        assert text_of(body, MediaType(name="text/plain", charset=charset), url=URL, limit=1000) == text


def test_a_letter_that_was_cut_in_the_middle_does_not_spoil_the_others() -> None:
    assert text_of("grün".encode()[:3], MediaType(name="text/plain"), url=URL, limit=9) == "gr"
