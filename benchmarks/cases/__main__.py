"""Run the collected cases and print what came of them: `python -m benchmarks.cases --cases DIR`."""

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

from benchmarks.cases.request_schema import RequestSchema
from benchmarks.cases.rig import Section, running_rig
from benchmarks.cases.sections import SECTIONS
from tests.databases import KINDS, Databases

_SHOWN = 25


async def run(cases: Path, database_url: str, directory: Path, names: list[str]) -> list[Section]:
    """The sections of these names, one after the other over one service."""
    schema = RequestSchema(cases / "openai_chat_schema.json")
    sections = []
    async with running_rig(database_url, schema, directory) as (rig, service_itself):
        for name in names:
            began = time.monotonic()
            section = await SECTIONS[name](rig, cases)
            sections.append(section)
            show(section, time.monotonic() - began)
    show(service_itself)
    return [*sections, service_itself]


def show(section: Section, seconds: float | None = None) -> None:
    """The section's outcomes by kind, and what was off."""
    took = "" if seconds is None else f": {section.cases} cases, {section.calls} model calls, {seconds:.1f} s"
    print(f"\n{section.title}{took}")
    for (kind, outcome), number in sorted(section.outcomes.items()):
        print(f"  {kind:34} {outcome:52} {number:5}")
    print(f"  off: {len(section.off)}")
    for line in section.off[:_SHOWN]:
        print(f"    {line}")
    sys.stdout.flush()


def main() -> int:
    """0 when nothing is off."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--cases", type=Path, required=True, help="the directory that holds the .jsonl files")
    arguments.add_argument("--database", choices=KINDS, default="sqlite")
    arguments.add_argument("--only", choices=list(SECTIONS), action="append", help="may be given more than once")
    chosen = arguments.parse_args()
    with ExitStack() as kept:
        directory = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="planwave-cases-")))
        databases = kept.enter_context(closing(Databases(directory)))
        url = kept.enter_context(databases.fresh(chosen.database))
        sections = asyncio.run(run(chosen.cases, url, directory, chosen.only or list(SECTIONS)))
    off = sum(len(section.off) for section in sections)
    print(f"\n{sum(section.cases for section in sections)} cases on {chosen.database}: {off} things off")
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
