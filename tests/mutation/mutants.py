"""What can be wrong with a statement: small changes to a module's source, each of which some test has to notice."""

import ast
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

_OPERATORS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_OPPOSITES = {"is_": "is_not", "is_not": "is_", "in_": "not_in", "not_in": "in_", "true": "false", "false": "true"}
_LISTS = {"where", "and_", "order_by"}
"""Calls that would be calls without any one of their arguments, too."""
_LINKS = {"where", "order_by", "limit", "with_for_update", "desc", "group_by"}
"""Links of a chain that would be a chain without them, too."""
T = TypeVar("T")
Change = tuple[str, ast.expr]
"""What is done to an expression, and the expression in its place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutant:
    """A module's source with one change; its name stays the same when lines move."""

    name: str
    line: int
    source: str

    @property
    def place(self) -> str:
        """The function or name that is changed."""
        return self.name.partition(":")[0]


def mutants_of(source: str) -> list[Mutant]:
    """Every mutant, in the order of the lines."""
    lines = source.encode().splitlines(keepends=True)
    starts = [sum(map(len, lines[:number])) for number in range(len(lines) + 1)]
    text = source.encode()
    seen: Counter[str] = Counter()
    found: list[Mutant] = []
    for place, node in _expressions(ast.parse(source), "module"):
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        for what, instead in _changes(node):
            name = f"{place}: {what}"
            seen[name] += 1
            if seen[name] > 1:
                name += f" ({seen[name]})"
            changed = text[:begin] + f"({ast.unparse(instead)})".encode() + text[end:]
            found.append(Mutant(name=name, line=node.lineno, source=changed.decode()))
    return sorted(found, key=lambda mutant: mutant.line)


def _expressions(node: ast.AST, place: str) -> Iterator[tuple[str, ast.expr]]:
    """All that is computed, with the function or name that it belongs to; annotations and classes are left out."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        defaults = [*node.args.defaults, *(default for default in node.args.kw_defaults if default is not None)]
        for child in (*defaults, *node.body):
            yield from _expressions(child, node.name)
        return
    if isinstance(node, ast.Assign) and place == "module" and isinstance(node.targets[0], ast.Name):
        place = node.targets[0].id
    if isinstance(node, ast.AnnAssign):
        if node.value is not None and isinstance(node.target, ast.Name):
            yield from _expressions(node.value, node.target.id if place == "module" else place)
        return
    if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.ClassDef) and _is_dataclass(node)):
        return
    if isinstance(node, ast.expr):
        yield place, node
    for child in ast.iter_child_nodes(node):
        yield from _expressions(child, place)


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def _changes(node: ast.expr) -> Iterator[Change]:
    match node:
        case ast.Call():
            yield from _changes_of_call(node)
        case ast.Compare(left=left, ops=[operator], comparators=right):
            for other in _OPERATORS[type(operator)]:
                changed = ast.Compare(left=left, ops=[other()], comparators=right)
                yield f"{ast.unparse(node)} -> {ast.unparse(changed)}", changed
        case ast.BinOp(left=left, op=ast.BitAnd() | ast.BitOr(), right=right):
            other_op = ast.BitOr() if isinstance(node.op, ast.BitAnd) else ast.BitAnd()
            yield from _instead(node, left, right, ast.BinOp(left=left, op=other_op, right=right))
        case ast.BinOp(left=left):
            yield from _instead(node, left)
        case ast.BoolOp(values=values):
            other_bool = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield from _instead(node, ast.BoolOp(op=other_bool, values=values))
            for rest in _without_one(values):
                yield from _instead(node, rest[0] if len(rest) == 1 else ast.BoolOp(op=node.op, values=list(rest)))
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield from _instead(node, body, orelse, ast.IfExp(test=test, body=orelse, orelse=body))
        case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand):
            yield from _instead(node, operand)
        case ast.Constant(value=bool(value)):
            yield from _instead(node, ast.Constant(value=not value))
        case ast.Constant(value=int(value)):
            yield from _instead(node, ast.Constant(value=value + 1))
        case ast.Tuple(elts=elements) if len(elements) > 1 and all(_is_text(element) for element in elements):
            for gone, rest in zip(elements, _without_one(elements), strict=True):
                yield f"without {ast.unparse(gone)}", ast.Tuple(elts=list(rest), ctx=ast.Load())


def _changes_of_call(node: ast.Call) -> Iterator[Change]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
    if name in _LINKS and isinstance(node.func, ast.Attribute) and (len(node.args) < 2 or name not in _LISTS):
        yield f"without .{name}({', '.join(map(ast.unparse, [*node.args, *node.keywords]))})", node.func.value
    if name in _LISTS and len(node.args) > 1:
        for gone, rest in zip(node.args, _without_one(node.args), strict=True):
            yield f"{name} without {ast.unparse(gone)}", ast.Call(func=node.func, args=list(rest), keywords=[])
    if name in ("values", "with_for_update"):
        for keyword in node.keywords:
            kept = [other for other in node.keywords if other is not keyword]
            if not kept and name == "values":
                continue
            value = ast.unparse(keyword.value)
            short = f"{keyword.arg}={value if len(value) < 50 else '...'}"
            yield f"{name} without {short}", ast.Call(func=node.func, args=node.args, keywords=kept)
    if name in _OPPOSITES and isinstance(node.func, ast.Attribute):
        opposite = ast.Attribute(value=node.func.value, attr=_OPPOSITES[name], ctx=ast.Load())
        yield from _instead(node, ast.Call(func=opposite, args=node.args, keywords=node.keywords))
    if name == "case":
        yield from _changes_of_case(node)
    if name in ("coalesce", "keep"):
        yield from _instead(node, *node.args, ast.Call(func=node.func, args=node.args[::-1], keywords=[]))
    if name == "sorted":
        yield from _instead(node, ast.Call(func=ast.Name(id="list"), args=node.args, keywords=[]))


def _changes_of_case(node: ast.Call) -> Iterator[Change]:
    """Each branch alone, without each branch of several, and with the values of two branches exchanged."""
    (otherwise,) = [keyword.value for keyword in node.keywords]
    branches = [(arg.elts[0], arg.elts[1]) for arg in node.args if isinstance(arg, ast.Tuple)]
    yield from _instead(node, *(value for _, value in branches), otherwise)
    for rest in _without_one(branches):
        if rest:
            yield from _instead(node, _case(node, rest, otherwise))
    first, *more = branches
    yield from _instead(node, _case(node, [(first[0], otherwise), *more], first[1]))


def _case(node: ast.Call, branches: Sequence[tuple[ast.expr, ast.expr]], otherwise: ast.expr) -> ast.Call:
    args: list[ast.expr] = [ast.Tuple(elts=list(branch), ctx=ast.Load()) for branch in branches]
    return ast.Call(func=node.func, args=args, keywords=[ast.keyword(arg="else_", value=otherwise)])


def _instead(node: ast.expr, *others: ast.expr) -> Iterator[Change]:
    for other in others:
        yield f"{ast.unparse(node)} -> {ast.unparse(other)}", other


def _without_one(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return ([*items[:gone], *items[gone + 1 :]] for gone in range(len(items)))


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
