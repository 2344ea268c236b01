"""The engine: claims runs, walks their plans, records what happens."""
