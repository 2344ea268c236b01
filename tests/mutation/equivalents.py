"""Mutants that do no harm, each with the reason, and mutants that take more than one change."""

from collections.abc import Mapping, Sequence

EQUIVALENTS: Mapping[str, Mapping[str, str]] = {"dispatch": {}, "writing": {}, "steering": {}, "resume": {}}

_HELD = "held = [(lease.tenant_id, lease.run_id, lease.token) for lease in leases]"
_HOLDS = "sa.tuple_(runs.c.tenant_id, runs.c.id, runs.c.lease_token)"
HAND_MADE: Mapping[str, Mapping[str, Sequence[tuple[str, str]]]] = {
    "dispatch": {
        "_held_by: without the tenant": [
            (_HELD, _HELD.replace("lease.tenant_id, ", "")),
            (_HOLDS, _HOLDS.replace("runs.c.tenant_id, ", "")),
        ],
        "_held_by: without the run": [
            (_HELD, _HELD.replace("lease.run_id, ", "")),
            (_HOLDS, _HOLDS.replace("runs.c.id, ", "")),
        ],
        "_held_by: without the token": [
            (_HELD, _HELD.replace(", lease.token", "")),
            (_HOLDS, _HOLDS.replace(", runs.c.lease_token", "")),
        ],
    },
    "writing": {},
    "steering": {},
    "resume": {},
}
