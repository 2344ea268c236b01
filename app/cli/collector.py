"""The garbage collector of a process: little to do while it starts, and less of what stays."""

import gc

_STARTING = 1_000_000
_YOUNG = 20_000
"""Objects made, net, before the youngest are looked at. The usual 700 are made anew by every few answers of a model."""


def start() -> None:
    """To be called first: a fifth of a start would go into looking at modules, again and again, which all stay."""
    gc.set_threshold(_STARTING, 10, 10)


def settle() -> None:
    """To be called once all is imported: what is there by then stays as long as the process, and is not looked at."""
    gc.freeze()
    gc.set_threshold(_YOUNG, 10, 10)
