"""Everything a task may touch beside its model: functions, pages on the web, MCP servers."""
