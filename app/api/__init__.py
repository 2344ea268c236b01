"""The HTTP API: requests in, rows and problems out. It meets the engine in the database only."""
