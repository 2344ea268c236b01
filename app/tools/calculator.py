"""The calculator: one arithmetical expression, with bounds on what it may cost."""

import ast
import math
import operator
import re
import statistics
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import simpleeval  # type: ignore[import-untyped]
from pydantic import Field

from app.domain.errors import ToolRetry
from app.tools.functions import tool

MAX_CHARACTERS = 1_000
MAX_DIGITS = 1_000
"""Of any whole number on the way: so no step takes longer than microseconds, and there are fewer than 1,000 steps."""

_BEYOND = 10**MAX_DIGITS
_MAX_BITS = _BEYOND.bit_length()
_TOO_LARGE = f"A number on the way has more than {MAX_DIGITS:,} digits, or is too large for a decimal number."
_THOUSANDS = re.compile(r"(?<![\w.])00+(?![\w.])")

Number = int | float


@tool
async def calculator(
    expression: Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS, description="For example 3 * (2 + 5.5)")],
) -> str:
    """Compute one arithmetical expression in Python's notation and give the number.

    Operators: + - * / // % ** and parentheses. The power is `**`, not `^`. `%` is the remainder: 15 percent of 80 is
    80 * 15 / 100. Constants: pi, e, tau. Functions: abs, min, max, sum, mean, median, round (halves go to the even
    neighbour), floor, ceil, trunc, sqrt, isqrt, cbrt, exp, log (natural, or log(x, base)), log2, log10, pow, sin, cos,
    tan, asin, acos, atan, atan2, sinh, cosh, tanh (all in radians), degrees, radians, hypot, factorial, gcd, lcm, comb.
    Lists stand in square brackets: mean([1, 2, 3]). Write numbers without thousands separators, units or currency
    signs. Whole numbers are exact; others have 15 digits.
    """
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        for node in ast.walk(tree):
            _check_node(node)
        if isinstance(tree.body, ast.List | ast.Tuple):
            raise _refused("It gives several numbers; write one expression, and numbers without thousands separators.")
        if _THOUSANDS.search(expression):
            raise _refused("Write numbers without thousands separators: 1000, not 1,000.")
        return _written(_evaluated(tree.body))
    except SyntaxError:
        raise _refused(
            "It is no expression. Use + - * / // % ** and functions, with `*` between factors, no `=`, no units, and"
            " `/ 100` in place of a percent sign."
        ) from None
    except (RecursionError, MemoryError):
        raise _refused("It is nested too deeply.") from None
    except ZeroDivisionError:
        raise _refused("It divides by zero.") from None
    except OverflowError:
        raise _refused(_TOO_LARGE) from None
    except (TypeError, ValueError, statistics.StatisticsError):
        raise _refused(
            "A function or operator is given what it is not defined for: too few or too many numbers, a list in place"
            " of a number, or a number outside its domain."
        ) from None


def _refused(why: str) -> ToolRetry:
    return ToolRetry(f"The expression cannot be computed. {why}", kind="bad_expression", may_have_acted=False)


def _check_node(node: ast.AST) -> None:
    """Refuse all but numbers, names, operators and calls of functions by name, before anything is computed."""
    match node:
        case ast.BitXor():
            raise _refused("`^` is not the power; write `**`.")
        case ast.Constant() if type(node.value) not in (int, float):
            raise _refused("It may hold numbers only: no text, no complex numbers, no truth values.")
        case ast.Constant():
            _bounded(node.value)
        case ast.Call() if not isinstance(node.func, ast.Name):
            raise _refused("Functions are called by their name only.")
        case ast.Call(func=ast.Name(id=name)) if node.keywords or name not in _FUNCTIONS:
            raise _refused(f"There is no such function with such arguments; there are {', '.join(_FUNCTIONS)}.")
        case ast.Name(id=name) if name not in _CONSTANTS and name not in _FUNCTIONS:
            raise _refused("It names something that is not there; there are no variables, only pi, e, tau.")
        case _ if not isinstance(node, _ALLOWED):
            raise _refused("It may hold numbers, + - * / // % **, parentheses, lists and calls of functions only.")


def _evaluated(body: ast.expr) -> Number:
    evaluator = simpleeval.SimpleEval(operators=_OPERATORS, functions=dict(_FUNCTIONS), names=dict(_CONSTANTS))
    evaluator.nodes = {
        ast.Constant: lambda node: node.value,
        ast.Name: lambda node: _CONSTANTS[node.id] if node.id in _CONSTANTS else _not_called(),
        ast.List: lambda node: [evaluator._eval(entry) for entry in node.elts],
        ast.Tuple: lambda node: [evaluator._eval(entry) for entry in node.elts],
        **{kind: evaluator.nodes[kind] for kind in (ast.UnaryOp, ast.BinOp, ast.Call)},
    }
    return _bounded(evaluator.eval("", previously_parsed=body))


def _written(number: Number) -> str:
    """A whole number in all its digits; another with those that binary arithmetic gets right: 0.3, not 0.300…04."""
    return str(number if isinstance(number, int) else float(f"{number:.15g}"))


def _not_called() -> Number:
    raise _refused("A function stands without its arguments in parentheses.")


def _bounded(value: Any) -> Number:
    """The number, if it is one of a size that can be gone on with."""
    match value:
        case bool():
            raise TypeError
        case int() if abs(value) >= _BEYOND:
            raise _refused(_TOO_LARGE)
        case float() if not math.isfinite(value):
            raise _refused(_TOO_LARGE)
        case complex():
            raise _refused("The result is no real number.")
        case int() | float():
            return value
        case _:
            raise TypeError


def _arithmetic(do: Callable[..., Any]) -> Callable[..., Number]:
    """On numbers alone: to Python, a list times 3 means something too."""
    return lambda *given: _bounded(do(*map(_bounded, given)))


def _power(base: Number, exponent: Number) -> Any:
    whole = isinstance(base, int) and isinstance(exponent, int) and abs(base) > 1
    if whole and (int(base).bit_length() - 1) * exponent > _MAX_BITS:
        raise _refused(_TOO_LARGE)
    return base**exponent


def _numbers(given: Sequence[Any]) -> list[Number]:
    """What is given one by one, or as one list."""
    return [_bounded(number) for number in (given[0] if len(given) == 1 and isinstance(given[0], list) else given)]


def _of_many(do: Callable[[list[Number]], Any]) -> Callable[..., Number]:
    return lambda *given: _bounded(do(_numbers(given)))


def _round(number: Number, digits: Number = 0) -> Number:
    if not isinstance(digits, int) or abs(digits) > MAX_DIGITS:
        raise _refused(f"round takes a whole number of digits, at most {MAX_DIGITS:,}.")
    return round(number, digits) if digits else round(number)


def _factorial(number: Number) -> int:
    if number > MAX_DIGITS:
        raise _refused(_TOO_LARGE)
    return math.factorial(operator.index(number))  # type: ignore[arg-type]


def _comb(total: Number, chosen: Number) -> int:
    whole, part = operator.index(total), operator.index(chosen)  # type: ignore[arg-type]
    fewer = min(part, whole - part)
    # C(n, k) is at least (n/k)**k, and 2**k where k is at most half of n.
    if fewer * max(1, whole.bit_length() - fewer.bit_length() - 1) > _MAX_BITS:
        raise _refused(_TOO_LARGE)
    return math.comb(whole, part)


def _lcm(numbers: list[Number]) -> int:
    found = 1
    for number in numbers:
        found = int(_bounded(math.lcm(found, operator.index(number))))  # type: ignore[arg-type]
    return found


def _gcd(numbers: list[Number]) -> int:
    return math.gcd(*(operator.index(number) for number in numbers))  # type: ignore[arg-type]


_OPERATORS = {
    ast.Add: _arithmetic(operator.add),
    ast.Sub: _arithmetic(operator.sub),
    ast.Mult: _arithmetic(operator.mul),
    ast.Div: _arithmetic(operator.truediv),
    ast.FloorDiv: _arithmetic(operator.floordiv),
    ast.Mod: _arithmetic(operator.mod),
    ast.Pow: _arithmetic(_power),
    ast.UAdd: _arithmetic(operator.pos),
    ast.USub: _arithmetic(operator.neg),
}
_ALLOWED = (
    *_OPERATORS,
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.UnaryOp, ast.BinOp, ast.Call, ast.List, ast.Tuple),
)
_CONSTANTS: dict[str, Number] = {"pi": math.pi, "e": math.e, "tau": math.tau}
_FUNCTIONS: dict[str, Callable[..., Number]] = {
    "abs": _arithmetic(abs),
    "round": _arithmetic(_round),
    "factorial": _arithmetic(_factorial),
    "comb": _arithmetic(_comb),
    "pow": _arithmetic(_power),
    "min": _of_many(min),
    "max": _of_many(max),
    "sum": _of_many(sum),
    "mean": _of_many(statistics.mean),
    "median": _of_many(statistics.median),
    "gcd": _of_many(_gcd),
    "lcm": _of_many(_lcm),
    "hypot": _of_many(lambda numbers: math.hypot(*numbers)),
    **{
        name: _arithmetic(getattr(math, name))
        for name in (
            *("floor", "ceil", "trunc", "sqrt", "isqrt", "cbrt", "exp", "log", "log2", "log10", "degrees", "radians"),
            *("sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh"),
        )
    },
}
