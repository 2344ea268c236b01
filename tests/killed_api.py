"""`planwave` whose API kills its own process when a new run is committed and its client has not been told.

python -m tests.killed_api serve --no-worker
"""

import os
import signal
from typing import Any

from app.api import creation, goals
from app.cli import main

_goals: Any = goals
_make_once = creation.make_once


async def _make_once_and_die(*given: Any) -> Any:
    run, replayed = await _make_once(*given)
    if not replayed:
        os.kill(os.getpid(), signal.SIGKILL)
    return run, replayed


if __name__ == "__main__":
    _goals.make_once = _make_once_and_die
    main()
