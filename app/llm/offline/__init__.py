"""The built-in model: works from the text it is given, knows nothing else, and says so."""

from app.llm.offline.model import NAME, OfflineModel

__all__ = ["NAME", "OfflineModel"]
