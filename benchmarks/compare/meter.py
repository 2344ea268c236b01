"""CPU seconds and memory of processes, read from outside of them (Linux)."""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_GONE = (FileNotFoundError, ProcessLookupError)


def cpu_seconds(roots: Iterable[int]) -> float:
    """User and system time of these processes and of all below them, ended ones too."""
    below: dict[int, list[int]] = {}
    reaped: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(*_GONE):
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                below.setdefault(int(fields[1]), []).append(int(entry.name))
                reaped[int(entry.name)] = (int(fields[13]) + int(fields[14])) / _TICK
    total, open_ends = 0.0, list(roots)
    while open_ends:
        pid = open_ends.pop()
        open_ends += below.get(pid, [])
        total += reaped.get(pid, 0.0) + _own_seconds(pid)
    return total


def _own_seconds(pid: int) -> float:
    """Of all threads of a process, to the nanosecond: /proc counts in ticks of 10 ms."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # what clock_getcpuclockid(3) gives
    except OSError:
        return 0.0


def forget_peak(pids: Iterable[int]) -> None:
    """Have `peak_mb` begin anew."""
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_mb(pids: Iterable[int]) -> float:
    """The most memory resident at once since `forget_peak`, each process for itself, added up, in MiB."""
    return sum(_status_mb(pid, "VmHWM:") for pid in pids)


def resident_mb(pid: int) -> float:
    """Memory resident just now, in MiB."""
    return _status_mb(pid, "VmRSS:")


def _status_mb(pid: int, field: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)


def maps(pid: int, library: str) -> bool:
    """Whether a process has loaded a library of this name."""
    return library in Path(f"/proc/{pid}/maps").read_text()


def stolen_seconds() -> float:
    """CPU time that the machine's host gave to others since boot, all cores together."""
    return int(Path("/proc/stat").read_text().split(maxsplit=9)[8]) / _TICK


def cores() -> int:
    """That the machine has."""
    return os.cpu_count() or 1
