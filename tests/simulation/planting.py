"""How a mistake is planted: a mutant is an edit of one function's source.

The function's code is exchanged, so that everybody who knows the function has the mistake; an edit that no longer fits
the source fails.
"""

import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutant:
    """`function` with each first text of `edits` replaced by its second."""

    function: Callable[..., Any]
    edits: Sequence[tuple[str, str]]

    @contextmanager
    def planted(self) -> Iterator[None]:
        """With the mistake in place."""
        function, right = self._innermost, self.code
        function.__code__ = self._wrong(function)
        try:
            yield
        finally:
            function.__code__ = right

    @property
    def code(self) -> CodeType:
        """Of the function, as it is now."""
        code: CodeType = self._innermost.__code__
        return code

    @property
    def _innermost(self) -> Any:
        function: Any = self.function.fget if isinstance(self.function, property) else self.function
        return inspect.unwrap(function)

    def _wrong(self, function: FunctionType) -> CodeType:
        source = textwrap.dedent(inspect.getsource(function))
        lines = source.splitlines()
        begin = next(n for n, line in enumerate(lines) if line.startswith(("def ", "async def ")))
        source = "from __future__ import annotations\n" + "\n".join(lines[begin:])
        for right, wrong in self.edits:
            assert source.count(right) == 1, f"{function.__qualname__} has {source.count(right)} times: {right}"
            source = source.replace(right, wrong)
        made: dict[str, Any] = {}
        exec(source, function.__globals__, made)
        code: CodeType = made[function.__name__].__code__
        assert code.co_freevars == function.__code__.co_freevars
        return code


def mutant(function: Any, *edits: tuple[str, str]) -> Mutant:
    """The mistake that these edits make of this function."""
    return Mutant(function=function, edits=edits)
