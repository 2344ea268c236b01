"""The command line, `planwave`: the entry point, and what an error looks like to a person."""

import io
import sys

from app.cli import collector
from app.domain.errors import ConfigurationError, PlanwaveError, StorageUnavailable

_EXIT_CODES = {ConfigurationError: 2, StorageUnavailable: 3}


def main() -> None:
    """Run `planwave`. An expected error is one line on stderr: exit 2 for settings, 3 for the database, else 1."""
    collector.start()
    from app.cli.commands import app  # noqa: PLC0415 - `import app.cli` by a test or a tool need not load typer
    from app.cli.terminal import complain  # noqa: PLC0415

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character is no reason to stop
    try:
        app(prog_name="planwave")
    except PlanwaveError as error:
        complain(str(error))
        sys.exit(_EXIT_CODES.get(type(error), 1))
