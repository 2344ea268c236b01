import pytest
from mcp.types import (
    AudioContent,
    CallToolResult,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
)

from app.tools.mcp_answers import as_text

SAID = TextContent(text="said")
SHOWN = ImageContent(data="AAAA", mime_type="image/png")


@pytest.mark.parametrize(
    ("content", "structured", "text"),
    [
        ([SAID, TextContent(text="and said")], None, "said\nand said"),
        ([SAID], {"degrees": 21}, "said"),
        ([], {"place": "Zürich"}, '{"place": "Zürich"}'),
        ([SHOWN], {"degrees": 21}, '{"degrees": 21}\n[image left out]'),
        ([AudioContent(data="AAAA", mime_type="audio/wav")], None, "[audio left out]"),
        ([ResourceLink(uri="docs://one", name="one")], None, "[link to a resource: docs://one]"),
        ([EmbeddedResource(resource=TextResourceContents(uri="docs://one", text="inside"))], None, "inside"),
        ([], None, "[no content]"),
        ([TextContent(text="nul\0")], None, "nul\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_an_answer_becomes_text(content: list[ContentBlock], structured: object, text: str) -> None:
    assert as_text(CallToolResult(content=content, structured_content=structured), limit=100) == text


def test_an_answer_is_cut_at_its_limit() -> None:
    assert as_text(CallToolResult(content=[TextContent(text="x" * 11)]), limit=10) == "x" * 9 + "…"
