"""The garbage collector of a process that stays."""

import gc

_YOUNG = 20_000
"""Objects made, net, before the youngest are looked at. The usual 700 are made anew by every few answers of a model."""


def settle() -> None:
    """To be called once all is imported: what is there by then stays as long as the process, and is not looked at."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 10, 10)
