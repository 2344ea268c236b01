"""What may reach a terminal: text from outside made harmless, and complaints in one line."""

from typing import NoReturn

import typer

from app.domain.text import shortened

_PICTURES = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
    # Characters that turn the order of the text around them, so that it reads as something else.
    **dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD),
}


def harmless(text: str) -> str:
    """The text with control characters as pictures (ESC as ␛): it can neither colour, move nor command a terminal."""
    return text.replace("\r\n", "\n").translate(_PICTURES)


def one_line(text: str, limit: int = 300) -> str:
    """Harmless, on one line, of at most `limit` characters."""
    return shortened(harmless(" ".join(text.split())), limit)


def complain(message: str) -> None:
    """One line on stderr."""
    typer.echo(f"planwave: {one_line(message, 1_000)}", err=True)


def leave(message: str, exit_code: int) -> NoReturn:
    """Complain and end the command."""
    complain(message)
    raise typer.Exit(exit_code)
