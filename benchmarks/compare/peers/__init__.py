"""One file per peer, each run in a virtual environment of its own."""
