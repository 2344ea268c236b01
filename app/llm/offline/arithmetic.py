"""Arithmetic that stands in a text, really computed: numbers, + - * / **, parentheses, nothing else."""

import ast
import math
import operator
import re
from collections.abc import Callable, Iterable

_MAX_CHARACTERS = 200
_MAX_EXPONENT = 128
_MAX_BASE = 10**6
_MAX_VALUE = 10**40

_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_SPELLINGS = (
    (re.compile(r"[×·]"), "*"),
    (re.compile(r"÷|(?<=\d) divided by (?=[\d(])"), "/"),
    (re.compile(r"−|(?<=\d) minus (?=[\d(])"), " - "),
    (re.compile(r"(?<=\d) plus (?=[\d(])"), " + "),
    (re.compile(r"(?<=\d) (?:times|multiplied by) (?=[\d(])"), " * "),
    (re.compile(r"\^"), "**"),
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), ""),
    (re.compile(r"(\d{1,15}(?:\.\d{1,15})?) ?(?:%|percent) of (\d{1,15}(?:\.\d{1,15})?)"), r"\1 / 100 * \2"),
    (re.compile(r"\b\d{1,4}([-/])\d{1,2}\1\d{1,4}\b"), " "),  # a date is no subtraction
)
_RUN = re.compile(r"(?<![\w.])[-(\d][-+*/(). \d]{2,}")
_OPERATION = re.compile(r"[\d)] *(?:\*\*|[-+*/]) *[-( ]*\d")
# "3-7 tasks" and "24/7" are no sums: a bare - or / counts only beside a word that asks for one.
_PLAIN = re.compile(r"[+*]| [-/] ")
_ASKED = re.compile(r"\b(?:calculate|compute|evaluate|work out|solve|how much is|what is|what's)\b|=", re.I)
_VALUE = re.compile(r"-?\d{1,40}(?:\.\d{1,20})?")


def evaluate(expression: str) -> int | float:
    """The value of the expression. Raises `ValueError` for anything but bounded arithmetic."""
    if len(expression) > _MAX_CHARACTERS:
        raise ValueError("too long")
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ArithmeticError, MemoryError, RecursionError) as error:
        raise ValueError(f"not arithmetic: {error}") from error


def expressions(text: str) -> list[str]:
    """The expressions that a text holds, tidied, each once; only those that can be computed."""
    text = text[:2_000]
    asked = _ASKED.search(text) is not None
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    found: dict[str, None] = {}
    for run in _RUN.findall(text):
        if _OPERATION.search(run) is None or not (asked or _PLAIN.search(run)):
            continue
        for candidate in (run.strip(" .+*/-"), run.strip(" .+*/-()"), run.strip(" .+*/")):
            if _computable(candidate):
                found[re.sub(r" *(\*\*|[-+*/]) *", r" \1 ", " ".join(candidate.split())).strip()] = None
                break
    return list(found)


def computed(text: str) -> list[str]:
    """`12 * 7 = 84` for each expression in the text."""
    return [f"{expression} = {shown(evaluate(expression))}" for expression in expressions(text)]


def shown(value: float) -> str:
    """The number as a person writes it."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return str(value) if isinstance(value, int) else f"{value:.10g}"


def values(texts: Iterable[str]) -> list[int | float]:
    """The number that each text comes down to: after its last `=`, or the only one in it. Others are left out."""
    found: list[int | float] = []
    for text in texts:
        numbers = _VALUE.findall(text.rpartition("=")[2][:2_000]) if "=" in text else _VALUE.findall(text[:2_000])
        if numbers and ("=" in text or len(numbers) == 1):
            found.append(float(numbers[0]) if "." in numbers[0] else int(numbers[0]))
    return found


def combined(task: str, results: Iterable[str]) -> str | None:
    """What a task like "add the results" makes of the numbers in its results; None where it asks no such thing."""
    for pattern, sign in (
        (r"\b(?:add|sum|total)\b", "+"),
        (r"\b(?:multiply|product)\b", "*"),
        (r"\b(?:subtract|difference)\b", "-"),
        (r"\b(?:divide|ratio|quotient)\b", "/"),
    ):
        if re.search(pattern, task, re.I):
            numbers = [shown(number) for number in values(results)]
            expression = f" {sign} ".join(f"({n})" if n.startswith("-") else n for n in numbers)
            return (
                f"{expression} = {shown(evaluate(expression))}"
                if len(numbers) > 1 and _computable(expression)
                else None
            )
    return None


def _computable(expression: str) -> bool:
    try:
        evaluate(expression)
    except ValueError:
        return False
    return True


def _value(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            value: complex = number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value = -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            value = _value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            a, b = _value(left), _value(right)
            if isinstance(op, ast.Pow) and (abs(b) > _MAX_EXPONENT or abs(a) > _MAX_BASE):
                raise ValueError("the power is too large")
            value = _OPERATORS[type(op)](a, b)
        case _:
            raise ValueError("only numbers, + - * / ** and parentheses")
    if isinstance(value, complex) or not math.isfinite(value) or abs(value) > _MAX_VALUE:
        raise ValueError("the value is out of range")
    return value
