"""Rules written as expressions: `temperature > 30 and avg(humidity, '15m') < 40 for '5m'`.

A small grammar that becomes the very conditions of `conditions`, and nothing that is executed:

    rule       = either [ "for" TIME ] [ COUNT "times" "within" TIME ]
    either     = both { "or" both }          both = single { "and" single }
    single     = "not" single | "(" either ")" | "no" "data" "for" TIME | comparison
    comparison = call | left OPERATOR right | metric "between" NUMBER "and" NUMBER | formula OPERATOR formula
    left       = metric | call               right = [NUMBER "*"] name [("+"|"-") NUMBER] | literal
    call       = FUNCTION "(" metric [ "," TIME ] ")"

or the word "always", of a rule that derives a metric; `formulas` has the grammar of a formula.

Functions: avg (mean), min, max, sum, count, stddev over a window; rate; zscore; changed; anomaly (what a
detector scores, 0 to 1). A metric of another name is written in backquotes; `metadata.KEY`,
`twin.desired.KEY`, `twin.reported.KEY` are the device's own.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from sensorium.actors.conditions.kinds import (
    All,
    Always,
    AnomalyScore,
    AnyCondition,
    Changed,
    Either,
    Formula,
    NoData,
    Not,
    Operator,
    Range,
    RateOfChange,
    Reference,
    Threshold,
    WindowAggregate,
    ZScore,
)
from sensorium.actors.errors import InvalidMessage
from sensorium.actors.formulas import Constant, FormulaParser, Node, metrics_in
from sensorium.actors.tokens import MAX_CHARACTERS as MAX_CHARACTERS
from sensorium.actors.tokens import MAX_NESTING, OWN, WINDOW_FUNCTIONS, Cursor, Token, tokens_of
from sensorium.actors.tokens import parse_time as parse_time

_FUNCTIONS: Final = (*WINDOW_FUNCTIONS, "rate", "zscore", "changed", "anomaly")
_OPERATORS: Final = {op.value for op in Operator} | {"="}
_ARITHMETIC: Final = {"+", "-", "*", "/", "**"}
_FLIPPED: Final = {">": "<", ">=": "<=", "<": ">", "<=": ">=", "==": "==", "!=": "!="}


class Parsed(NamedTuple):
    """What an expression says. `times` is (count, seconds)."""

    condition: AnyCondition
    for_s: float = 0.0
    times: tuple[int, float] | None = None


class _Call(NamedTuple):
    function: str
    metric: str
    time_s: float | None
    column: int


def parse_expression(text: str) -> Parsed:
    """The conditions that an expression stands for.

    Raises:
        InvalidMessage: it is none; the text begins with `column N`, counted from 1.
    """
    return _Parser(tokens_of(text), text).rule()


class _Parser(Cursor):
    """By recursive descent over the tokens of one expression."""

    def __init__(self, tokens: list[Token], text: str) -> None:
        super().__init__(tokens)
        self._text = text
        self._depth = 0

    def rule(self) -> Parsed:
        condition = self._either()
        for_s, times = 0.0, None
        if self._word("for"):
            for_s = self._time()
        if self._here.kind == "number":
            count = self._number()
            column = self._before.column
            self._need_word("times")
            self._need_word("within")
            if count != int(count):
                self._fail("a whole number of times is needed", column)
            times = (int(count), self._time())
        if self._here.kind != "end":
            self._fail(f"{self._here.text!r} is not expected here")
        return Parsed(condition, for_s, times)

    # --- conditions -------------------------------------------------------------------------------------

    def _either(self) -> AnyCondition:
        parts = [self._both()]
        while self._word("or"):
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else Either(parts)

    def _both(self) -> AnyCondition:
        parts = [self._single()]
        while self._word("and"):
            parts.append(self._single())
        return parts[0] if len(parts) == 1 else All(parts)

    def _single(self) -> AnyCondition:
        self._depth += 1
        if self._depth > MAX_NESTING:
            self._fail("nested too deeply")
        try:
            if self._word("not"):
                return Not(self._single())
            if self._here.kind == "sign" and self._here.text == "(":
                return self._or_formula(self._grouped)
            if self._here.text == "always" and self._tokens[self._at + 1].kind == "end":
                self._next()
                return Always()
            if self._here.text == "no" and self._tokens[self._at + 1].text == "data":
                self._at += 2
                self._need_word("for")
                return NoData(self._time())
            return self._or_formula(self._comparison)
        finally:
            self._depth -= 1

    def _grouped(self) -> AnyCondition:
        self._need_sign("(")
        inner = self._either()
        self._need_sign(")")
        return inner

    def _or_formula(self, simple: Callable[[], AnyCondition]) -> AnyCondition:
        """What `simple` makes of it, or a comparison of formulas where it can make nothing of it.

        Of two mistakes, that of the formula is told if it was arithmetic that `simple` stopped at.
        """
        start, depth = self._at, self._depth
        try:
            condition = simple()
            if self._here.text not in _ARITHMETIC and self._here.text not in _OPERATORS:
                return condition
            self._fail(f"{self._here.text!r} is not expected here")
        except InvalidMessage as error:
            mistake = error
        stopped_at, self._at, self._depth = self._here.text, start, depth
        try:
            return self._formula()
        except InvalidMessage:
            if stopped_at in _ARITHMETIC:
                raise
            raise mistake from None

    def _formula(self) -> AnyCondition:
        first = self._here.column
        left, left_text = self._side()
        if self._here.text not in _OPERATORS:
            self._fail(f"one of >, >=, <, <=, == or != is needed, not {self._here.text!r}")
        operator = self._next().text
        operator = "==" if operator == "=" else operator
        right, right_text = self._side()
        if isinstance(right, Constant):
            condition = Formula(left_text, Operator(operator), right.value)
        elif isinstance(left, Constant):
            condition = Formula(right_text, Operator(_FLIPPED[operator]), left.value)
        else:
            condition = Formula(left_text, Operator(operator), right_text)
        if not metrics_in(left) and not metrics_in(right):
            self._fail("names no metric, so nothing that is measured changes it", first)
        return condition

    def _side(self) -> tuple[Node, str]:
        start = self._here.column
        parser = FormulaParser(self._tokens, self._at)
        node = parser.formula()
        self._at = parser.at
        last = self._before
        return node, self._text[start - 1 : last.column - 1 + len(last.text)]

    def _comparison(self) -> AnyCondition:
        column = self._here.column
        left = self._operand()
        if isinstance(left, _Call) and left.function == "changed":
            return Changed(left.metric)
        if isinstance(left, str) and self._word("between"):
            low = self._number()
            self._need_word("and")
            return Range(left, low, self._number(), inside=True)
        if self._here.text not in _OPERATORS:
            if self._here.kind == "end":
                self._fail("the expression ends where >, >=, <, <=, ==, != or between should follow")
            self._fail(f"one of >, >=, <, <=, ==, != or between is needed, not {self._here.text!r}")
        operator = self._next().text.replace("=", "==") if self._here.text == "=" else self._next().text
        right = self._operand()
        if not isinstance(left, str | _Call):
            left, right, operator = right, left, _FLIPPED[operator]
        return self._compare(left, Operator(operator), right, column)

    def _compare(self, left: Any, operator: Operator, right: Any, column: int) -> AnyCondition:
        if isinstance(right, str):
            right = Reference(metric=right)
        elif isinstance(right, _Call):
            self._fail("functions stand on the left of a comparison, with a limit on the right", right.column)
        elif isinstance(right, _Text):
            right = right.text
        if isinstance(left, str):
            return Threshold(left, operator, right)
        if not isinstance(left, _Call):
            self._fail("a comparison needs a metric or a function on one side", column)
        numeric = isinstance(right, float) and not isinstance(right, bool)
        if left.function in WINDOW_FUNCTIONS:
            if not numeric and not isinstance(right, Reference):
                self._fail(f"{left.function}() is a number, and needs one to be compared with", left.column)
            function: Any = WINDOW_FUNCTIONS[left.function]
            return WindowAggregate(left.metric, function, operator, right, left.time_s)
        if not numeric:
            self._fail(f"{left.function}() needs a number to be compared with", left.column)
        if left.function == "rate":
            falling = right < 0
            if falling:
                operator = Operator(_FLIPPED[operator.value])
            return RateOfChange(left.metric, abs(right), operator, "down" if falling else "up")
        if left.function == "anomaly":
            if operator not in (Operator.GT, Operator.GE) or not 0 < right <= 1:
                self._fail("anomaly() is a score: compare it with >= and a number from 0 to 1", left.column)
            return AnomalyScore(left.metric, right)
        if operator not in (Operator.GT, Operator.GE) or right <= 0:
            self._fail(
                "zscore() is an absolute deviation: compare it with > and a number above 0", left.column
            )
        return ZScore(left.metric, right, left.time_s)

    # --- operands ---------------------------------------------------------------------------------------

    def _operand(self) -> "str | float | bool | _Text | _Call | Reference":
        token = self._here
        if token.kind == "text":
            return _Text(self._next().text[1:-1])
        if token.text in ("true", "false"):
            return self._next().text == "true"
        if token.kind == "number" or token.text in ("-", "+"):
            number = self._number()
            if not self._sign("*"):
                return number
            name = self._name("a metric, metadata or the twin is needed after *")
            return self._reference(name, number)
        name = self._name("a metric, a number or a function is needed")
        if self._sign("("):
            return self._call(name, token.column)
        if name.startswith(OWN) or self._here.text in ("+", "-", "*"):
            factor = 1.0
            if self._sign("*"):
                factor = self._number()
            return self._reference(name, factor)
        return name

    def _reference(self, name: str, factor: float) -> Reference:
        offset = 0.0
        if self._here.text in ("+", "-"):
            sign = -1.0 if self._next().text == "-" else 1.0
            offset = sign * self._number()
        if name.startswith("metadata."):
            return Reference(metadata=name.partition(".")[2], factor=factor, offset=offset)
        if name.startswith(OWN):
            return Reference(twin=name.partition(".")[2], factor=factor, offset=offset)
        return Reference(metric=name, factor=factor, offset=offset)

    def _call(self, function: str, column: int) -> _Call:
        if function not in _FUNCTIONS:
            self._fail(f"no function {function}(); there are {', '.join(_FUNCTIONS)}", column)
        metric = self._name("the name of a metric is needed")
        time_s = None
        if self._sign(","):
            if function in ("rate", "changed", "anomaly"):
                self._fail(f"{function}() takes no window", self._before.column)
            time_s = self._time()
        self._need_sign(")")
        return _Call(function, metric, time_s, column)


class _Text(NamedTuple):
    """A text in quotes, which is no metric's name."""

    text: str
