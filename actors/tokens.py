"""The words of expressions and formulas, and a cursor over them that fails with a column."""

import re
from typing import Final, NamedTuple, NoReturn

from sensorium.actors.errors import InvalidMessage

MAX_CHARACTERS: Final = 2_000
MAX_NESTING: Final = 16
"""Of parentheses and nots; what comes out may be nested less (see `conditions.validate`)."""

_TOKEN: Final = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<text>'[^']*'|\"[^\"]*\")|(?P<quoted>`[^`]+`)|(?P<name>[^\W\d]\w*(?:\.\w+)*)"
    r"|(?P<sign>>=|<=|==|!=|\*\*|[-+*/><=(),]))"
)
_TIME: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
WINDOW_FUNCTIONS: Final = {
    "avg": "mean",
    "mean": "mean",
    "min": "min",
    "max": "max",
    "sum": "sum",
    "count": "count",
    "stddev": "stddev",
}
"""Functions of a metric over a window, and what conditions call them."""
OWN: Final = ("metadata.", "twin.desired.", "twin.reported.")
"""What a name begins with that is the device's own."""
WORDS: Final = {"and", "or", "not", "for", "between", "times", "within", "true", "false"}


class Token(NamedTuple):
    """A word with its column, counted from 1. `kind`: number, text, quoted, name, sign or end."""

    kind: str
    text: str
    column: int


def parse_time(text: str) -> float | None:
    """Seconds of `90s`, `15m`, `1h30m`, `250ms`, `2d`; None when it is no time."""
    matches = list(_TIME.finditer(text))
    if not matches or "".join(m.group() for m in matches) != text.strip():
        return None
    return sum(float(m[1]) * _UNITS_S[m[2]] for m in matches)


def tokens_of(text: str) -> list[Token]:
    """The words, and an end.

    Raises:
        InvalidMessage: a character that belongs to none, with its column; or more than `MAX_CHARACTERS`.
    """
    if len(text) > MAX_CHARACTERS:
        raise InvalidMessage(
            f"column {MAX_CHARACTERS}: an expression has {MAX_CHARACTERS} characters at most"
        )
    tokens = []
    place = 0
    end = len(text.rstrip())
    while place < end:
        match = _TOKEN.match(text, place)
        if match is None:
            column = place + len(text[place:]) - len(text[place:].lstrip()) + 1
            raise InvalidMessage(f"column {column}: {text[column - 1]!r} is not expected here")
        kind = str(match.lastgroup)
        tokens.append(Token(kind, match[kind], match.start(kind) + 1))
        place = match.end()
    tokens.append(Token("end", "", end + 1))
    return tokens


class Cursor:
    """A place among the tokens, which moves on as they are taken."""

    def __init__(self, tokens: list[Token], at: int = 0) -> None:
        self._tokens = tokens
        self._at = at

    @property
    def _here(self) -> Token:
        return self._tokens[self._at]

    @property
    def _before(self) -> Token:
        return self._tokens[self._at - 1]

    def _next(self) -> Token:
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

    def _name(self, needed: str) -> str:
        token = self._here
        if token.kind == "quoted":
            return self._next().text[1:-1]
        if token.kind != "name" or token.text in WORDS:
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

    def _fail(self, why: str, column: int | None = None) -> NoReturn:
        raise InvalidMessage(f"column {self._here.column if column is None else column}: {why}")
