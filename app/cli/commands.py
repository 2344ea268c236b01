"""Every command with its options. Each imports what it needs when it runs, so that `--help` is quick."""

# ruff: noqa: PLC0415 - see above
from typing import Annotated
from uuid import UUID

import typer

from app import __version__

DEMO_GOAL = "Write a blog post about Python async/await"

app = typer.Typer(
    help="Plan-and-execute as a service: a goal in, a stored plan, its tasks run in dependency order and in parallel.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
db = typer.Typer(help="The database's schema.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(db, name="db")

Host = Annotated[str, typer.Option(help="The address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one and says which.")]
Goal = Annotated[str, typer.Argument(help="What is wanted, in words.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"planwave {__version__}")
        raise typer.Exit


@app.callback()
def planwave(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Settings come from the environment or .env; .env.example lists them."""


@app.command()
def demo(
    goal: Goal = DEMO_GOAL,
    port: Port = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the service up until Ctrl-C.")] = False,
) -> None:
    """Start a service, give it a goal, show its waves and its answer."""
    from app.cli.demo import demo as show

    show(goal, port=port, keep=keep)


@app.command()
def serve(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    no_worker: Annotated[bool, typer.Option("--no-worker", help="Only the API: workers run elsewhere.")] = False,
    allow_unauthenticated: Annotated[
        bool, typer.Option("--allow-unauthenticated", help="Listen beyond loopback although nobody is asked for a key.")
    ] = False,
) -> None:
    """Run the service: the API and, unless told otherwise, a worker."""
    from app.cli.server import serve as run_service

    run_service(host=host, port=port, with_worker=not no_worker, allow_unauthenticated=allow_unauthenticated)


@app.command()
def worker() -> None:
    """Run a worker alone, beside services that share its database."""
    from app.cli.worker import work

    work()


@app.command()
def run(
    goal: Goal,
    url: Annotated[str, typer.Option(help="Where the service is.")] = "http://127.0.0.1:8000",
    tool: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A tool that its tasks may use; once for each.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the finished run as JSON, and nothing else.")] = False,
) -> None:
    """Give a goal to a running service and follow it: exit 0 when it succeeds, 1 when it does not."""
    from app.cli.run import run_goal

    raise typer.Exit(run_goal(goal, url=url, tools=tool or (), as_json=as_json))


@app.command()
def model(
    host: Host = "127.0.0.1",
    port: Port = 8081,
    seed: Annotated[int, typer.Option(help="Of the delays.")] = 0,
    delay: Annotated[str, typer.Option(help="How long an answer takes, in seconds: LOW,HIGH.")] = "0.1,0.5",
) -> None:
    """Serve the offline model as an OpenAI-compatible endpoint."""
    from app.cli.server import serve_model

    serve_model(host=host, port=port, seed=seed, delay_seconds=_range(delay))


@app.command()
def doctor(
    run_id: Annotated[UUID | None, typer.Option("--run", metavar="ID", help="Look at this run only.")] = None,
) -> None:
    """Look for what is wrong with stored runs: exit 0 when all is well, 1 with one line per finding."""
    from app.cli import configuration
    from app.cli.doctor import examine

    examine(configuration.load_settings(), run_id)


@db.command("upgrade")
def db_upgrade(revision: Annotated[str, typer.Option(help="Up to here.")] = "head") -> None:
    """Bring the schema up to this version."""
    from app.cli import configuration, database

    database.upgrade(configuration.load_settings(), revision)


@db.command("downgrade")
def db_downgrade(revision: Annotated[str, typer.Argument(help="Down to here; base for none of it.")]) -> None:
    """Take the schema back. What only the newer one could hold is lost."""
    from app.cli import configuration, database

    database.downgrade(configuration.load_settings(), revision)


@db.command("check")
def db_check() -> None:
    """Exit 0 when the schema is the one that this version needs, 1 otherwise."""
    from app.cli import configuration, database

    database.check(configuration.load_settings())


def _range(text: str) -> tuple[float, float]:
    from app.settings import low_and_high

    try:
        return low_and_high(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--delay") from None
