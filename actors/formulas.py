"""Formulas: arithmetic over a device's metrics, such as `power / (flow * 4.19) - avg(loss, '15m')`. Pure.

A small grammar that becomes a tree of values,nothing that is executed (`conditions.computed` compiles it):

    sum     = product { ("+"|"-") product }      product = power { ("*"|"/") power }
    power   = factor [ "**" power ]              factor  = "-" factor | "(" sum ")" | NUMBER | call | name
    call    = WINDOW "(" metric [ "," TIME ] ")" | ("before"|"rate") "(" metric ")"
            | FUNCTION "(" sum { "," sum } ")"

A name is a metric (of an odd one in backquotes), `metadata.KEY`, `twin.desired.KEY` or `twin.reported.KEY`.
"""

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Final, NamedTuple

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.tokens import MAX_NESTING, OWN, WINDOW_FUNCTIONS, Cursor, Token, tokens_of

MAX_NODES: Final = 200
"""Numbers, names and operations of one formula: what it costs a reading is bounded."""

SCALAR_FUNCTIONS: Final[dict[str, tuple[Callable[..., float], int, int]]] = {
    "abs": (abs, 1, 1),
    "sqrt": (math.sqrt, 1, 1),
    "exp": (math.exp, 1, 1),
    "ln": (math.log, 1, 1),
    "log10": (math.log10, 1, 1),
    "floor": (lambda x: float(math.floor(x)), 1, 1),
    "ceil": (lambda x: float(math.ceil(x)), 1, 1),
    "round": (lambda x: float(round(x)), 1, 1),
    "sin": (math.sin, 1, 1),
    "cos": (math.cos, 1, 1),
    "least": (min, 2, 8),
    "greatest": (max, 2, 8),
}
"""Each with its fewest and most arguments."""
TWO_READINGS: Final = ("before", "rate")
"""`before` is the value that the metric had at the reading before; `rate` its change since, a second."""


class Constant(NamedTuple):
    """A number."""

    value: float


class Named(NamedTuple):
    """The newest value of a metric, or a number of the device's own (`metadata.…`, `twin.…`)."""

    name: str
    own: bool


class Windowed(NamedTuple):
    """A figure of a metric over a window that ends with the reading; without a length, the profile's."""

    figure: str
    metric: str
    window_s: float | None


class Stepped(NamedTuple):
    """`before` or `rate` of a metric."""

    function: str
    metric: str


class Applied(NamedTuple):
    """An operator, or a function of `SCALAR_FUNCTIONS`, and what it is applied to."""

    function: str
    arguments: "tuple[Node, ...]"


Node = Constant | Named | Windowed | Stepped | Applied


def raised_to(base: float, exponent: float) -> float:
    """The power, of real numbers only. Raises `ValueError` where there is none."""
    return math.pow(base, exponent)


OPERATIONS: Final[dict[str, Callable[..., float]]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "**": raised_to,
    "negative": lambda a: -a,
    **{name: function for name, (function, _, _) in SCALAR_FUNCTIONS.items()},
}


@lru_cache(maxsize=4096)
def parse_formula(text: str) -> Node:
    """The formula as a tree, with what is constant worked out.

    Raises:
        InvalidMessage: it is none, or divides by zero whatever is measured; it begins with `column N`.
    """
    parser = FormulaParser(tokens_of(text))
    node = parser.formula()
    parser.end()
    return node


def nodes_of(node: Node) -> Iterator[Node]:
    """The node and all below it."""
    yield node
    if isinstance(node, Applied):
        for argument in node.arguments:
            yield from nodes_of(argument)


def metrics_in(node: Node) -> list[str]:
    """The metrics that it names, each once, in order."""
    found: dict[str, None] = {}
    for each in nodes_of(node):
        if isinstance(each, Windowed | Stepped):
            found[each.metric] = None
        elif isinstance(each, Named) and not each.own:
            found[each.name] = None
    return list(found)


class FormulaParser(Cursor):
    """By recursive descent, from a place in the tokens on which others may share."""

    def __init__(self, tokens: list[Token], at: int = 0) -> None:
        super().__init__(tokens, at)
        self._depth = 0
        self._nodes = 0

    @property
    def at(self) -> int:
        """The place of the next token."""
        return self._at

    def end(self) -> None:
        """Nothing may follow."""
        if self._here.kind != "end":
            self._fail(f"{self._here.text!r} is not expected here")

    def formula(self) -> Node:
        """The sum that begins here."""
        left = self._product()
        while self._here.kind == "sign" and self._here.text in ("+", "-"):
            token = self._next()
            left = self._apply(token.text, (left, self._product()), token.column)
        return left

    def _product(self) -> Node:
        left = self._power()
        while self._here.kind == "sign" and self._here.text in ("*", "/"):
            token = self._next()
            left = self._apply(token.text, (left, self._power()), token.column)
        return left

    def _power(self) -> Node:
        base = self._factor()
        if self._here.kind == "sign" and self._here.text == "**":
            token = self._next()
            self._deeper()
            base = self._apply("**", (base, self._power()), token.column)
            self._depth -= 1
        return base

    def _factor(self) -> Node:
        token = self._here
        self._deeper()
        try:
            if self._sign("-"):
                # As in mathematics, -x ** 2 is -(x ** 2).
                return self._apply("negative", (self._power(),), token.column)
            if self._sign("("):
                inner = self.formula()
                self._need_sign(")")
                return inner
            self._count(token.column)
            if token.kind == "number":
                return Constant(self._number())
            name = self._name("a metric, a number or a function is needed")
            if token.kind == "name" and self._sign("("):
                return self._call(name, token.column)
            return Named(name, token.kind == "name" and name.startswith(OWN))
        finally:
            self._depth -= 1

    def _call(self, function: str, column: int) -> Node:
        if function in WINDOW_FUNCTIONS:
            metric = self._metric(function)
            time_s = self._time() if self._sign(",") else None
            self._need_sign(")")
            return Windowed(WINDOW_FUNCTIONS[function], metric, time_s)
        if function in TWO_READINGS:
            metric = self._metric(function)
            self._need_sign(")")
            return Stepped(function, metric)
        if function not in SCALAR_FUNCTIONS:
            known = ", ".join((*WINDOW_FUNCTIONS, *TWO_READINGS, *SCALAR_FUNCTIONS))
            self._fail(f"no function {function}(); there are {known}", column)
        arguments = [self.formula()]
        while self._sign(","):
            arguments.append(self.formula())
        self._need_sign(")")
        _, fewest, most = SCALAR_FUNCTIONS[function]
        if not fewest <= len(arguments) <= most:
            wanted = "one argument" if most == 1 else f"{fewest} to {most} arguments"
            self._fail(f"{function}() takes {wanted}", column)
        return self._apply(function, tuple(arguments), column)

    def _metric(self, function: str) -> str:
        token = self._here
        name = self._name("the name of a metric is needed")
        if token.kind == "name" and name.startswith(OWN):
            self._fail(f"{function}() looks at a metric; {name} is none", token.column)
        return name

    def _apply(self, function: str, arguments: tuple[Node, ...], column: int) -> Node:
        self._count(column)
        if function == "/" and arguments[1] == Constant(0.0):
            self._fail("divides by zero", column)
        values = [argument.value for argument in arguments if isinstance(argument, Constant)]
        if len(values) < len(arguments):
            return Applied(function, arguments)
        try:
            result = float(OPERATIONS[function](*values))
        except (ArithmeticError, ValueError) as error:
            self._fail(f"cannot be worked out: {error}", column)
        if not math.isfinite(result):
            self._fail("the number is too large", column)
        return Constant(result)

    def _count(self, column: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self._fail(f"more than {MAX_NODES} numbers, names and operations", column)

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > 2 * MAX_NESTING:
            self._fail("nested too deeply")


def problem_of(text: Any) -> str | None:
    """Why it is no formula of metrics, or None."""
    try:
        node = parse_formula(text)
    except InvalidMessage as error:
        return str(error)
    return None if metrics_in(node) else "names no metric, so nothing that is measured changes it"
