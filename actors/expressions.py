"""Rules written as expressions: `temperature > 30 and avg(humidity, '15m') < 40 for '5m'`.

A small grammar that becomes the very conditions of `conditions`, and nothing that is executed:

    rule       = either [ "for" TIME ] [ COUNT "times" "within" TIME ]
    either     = both { "or" both }          both = single { "and" single }
    single     = "not" single | "(" either ")" | "no" "data" "for" TIME | comparison
    comparison = call | left OPERATOR right | metric "between" NUMBER "and" NUMBER
    left       = metric | call               right = [NUMBER "*"] name [("+"|"-") NUMBER] | literal
    call       = FUNCTION "(" metric [ "," TIME ] ")"

Functions: avg (mean), min, max, sum, count, stddev over a window; rate; zscore; changed; anomaly (what a
detector scores, 0 to 1). A metric of another name is written in backquotes; `metadata.KEY`,
`twin.desired.KEY`, `twin.reported.KEY` are the device's own.
"""

import re
from typing import Any, Final, NamedTuple, NoReturn

from sensorium.actors.conditions.kinds import (
    All,
    AnomalyScore,
    AnyCondition,
    Changed,
    Either,
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

MAX_CHARACTERS: Final = 2_000
MAX_NESTING: Final = 16
"""Of parentheses and nots; what comes out may be nested less (see `conditions.validate`)."""

_TOKEN: Final = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<text>'[^']*'|\"[^\"]*\")|(?P<quoted>`[^`]+`)|(?P<name>[^\W\d]\w*(?:\.\w+)*)"
    r"|(?P<sign>>=|<=|==|!=|[-+*><=(),]))"
)
_TIME: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_WINDOW_FUNCTIONS: Final = {
    "avg": "mean",
    "mean": "mean",
    "min": "min",
    "max": "max",
    "sum": "sum",
    "count": "count",
    "stddev": "stddev",
}
_FUNCTIONS: Final = (*_WINDOW_FUNCTIONS, "rate", "zscore", "changed", "anomaly")
_OWN: Final = ("metadata.", "twin.desired.", "twin.reported.")
_WORDS: Final = {"and", "or", "not", "for", "between", "times", "within", "true", "false"}
_OPERATORS: Final = {op.value for op in Operator} | {"="}
_FLIPPED: Final = {">": "<", ">=": "<=", "<": ">", "<=": ">=", "==": "==", "!=": "!="}


class Parsed(NamedTuple):
    """What an expression says. `times` is (count, seconds)."""

    condition: AnyCondition
    for_s: float = 0.0
    times: tuple[int, float] | None = None


class _Token(NamedTuple):
    kind: str
    text: str
    column: int


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
    if len(text) > MAX_CHARACTERS:
        raise InvalidMessage(
            f"column {MAX_CHARACTERS}: an expression has {MAX_CHARACTERS} characters at most"
        )
    return _Parser(_tokens(text)).rule()


def parse_time(text: str) -> float | None:
    """Seconds of `90s`, `15m`, `1h30m`, `250ms`, `2d`; None when it is no time."""
    matches = list(_TIME.finditer(text))
    if not matches or "".join(m.group() for m in matches) != text.strip():
        return None
    return sum(float(m[1]) * _UNITS_S[m[2]] for m in matches)


def _tokens(text: str) -> list[_Token]:
    tokens = []
    place = 0
    end = len(text.rstrip())
    while place < end:
        match = _TOKEN.match(text, place)
        if match is None:
            column = place + len(text[place:]) - len(text[place:].lstrip()) + 1
            raise InvalidMessage(f"column {column}: {text[column - 1]!r} is not expected here")
        kind = str(match.lastgroup)
        tokens.append(_Token(kind, match[kind], match.start(kind) + 1))
        place = match.end()
    tokens.append(_Token("end", "", end + 1))
    return tokens


class _Parser:
    """By recursive descent over the tokens of one expression."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0
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
            if self._sign("("):
                inner = self._either()
                self._need_sign(")")
                return inner
            if self._here.text == "no" and self._tokens[self._at + 1].text == "data":
                self._at += 2
                self._need_word("for")
                return NoData(self._time())
            return self._comparison()
        finally:
            self._depth -= 1

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
        if left.function in _WINDOW_FUNCTIONS:
            if not numeric and not isinstance(right, Reference):
                self._fail(f"{left.function}() is a number, and needs one to be compared with", left.column)
            function: Any = _WINDOW_FUNCTIONS[left.function]
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
        if name.startswith(_OWN) or self._here.text in ("+", "-", "*"):
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
        if name.startswith(_OWN):
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

    def _name(self, needed: str) -> str:
        token = self._here
        if token.kind == "quoted":
            return self._next().text[1:-1]
        if token.kind != "name" or token.text in _WORDS:
            self._fail(needed + ("" if token.kind == "end" else f", not {token.text!r}"))
        return self._next().text

    def _number(self) -> float:
        sign = 1.0
        while self._here.text in ("-", "+"):
            sign = -sign if self._next().text == "-" else sign
        if self._here.kind != "number":
            self._fail("a number is needed")
        value = sign * float(self._next().text)
        if abs(value) == float("inf"):
            self._fail("the number is too large", self._before.column)
        return value

    def _time(self) -> float:
        token = self._here
        seconds = parse_time(token.text[1:-1]) if token.kind == "text" else None
        if seconds is None:
            self._fail("a time in quotes is needed, such as '90s', '15m' or '1h30m'")
        self._next()
        return seconds

    # --- tokens -----------------------------------------------------------------------------------------

    @property
    def _here(self) -> _Token:
        return self._tokens[self._at]

    @property
    def _before(self) -> _Token:
        return self._tokens[self._at - 1]

    def _next(self) -> _Token:
        token = self._here
        self._at += 1
        return token

    def _word(self, word: str) -> bool:
        if self._here.kind == "name" and self._here.text == word:
            self._at += 1
            return True
        return False

    def _sign(self, sign: str) -> bool:
        if self._here.kind == "sign" and self._here.text == sign:
            self._at += 1
            return True
        return False

    def _need_word(self, word: str) -> None:
        if not self._word(word):
            self._fail(f"{word!r} is needed here")

    def _need_sign(self, sign: str) -> None:
        if not self._sign(sign):
            self._fail(f"{sign!r} is needed here")

    def _fail(self, why: str, column: int | None = None) -> NoReturn:
        raise InvalidMessage(f"column {self._here.column if column is None else column}: {why}")


class _Text(NamedTuple):
    """A text in quotes, which is no metric's name."""

    text: str
