"""What an MCP tool has answered, as text for a model."""

import json

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

from app.domain.text import shortened, storable


def as_text(result: CallToolResult, *, limit: int) -> str:
    """At most `limit` characters: its texts; its structured content as JSON where it has none; the rest named."""
    parts = [_part(block) for block in result.content]
    if result.structured_content is not None and not any(isinstance(block, TextContent) for block in result.content):
        parts.insert(0, json.dumps(result.structured_content, ensure_ascii=False))
    return shortened(storable("\n".join(parts)), limit) or "[no content]"


def _part(block: ContentBlock) -> str:
    match block:
        case TextContent():
            return block.text
        case EmbeddedResource(resource=TextResourceContents(text=text)):
            return text
        case ImageContent():
            return "[image left out]"
        case AudioContent():
            return "[audio left out]"
        case ResourceLink():
            return f"[link to a resource: {block.uri}]"
        case _:
            return "[resource left out]"
