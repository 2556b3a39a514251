"""What parts of a path may look like, so that `/api/dead-letters/replay` is no dead letter's path.

A route says it as `{letter_id:digits}`. Bounded, since Starlette's own `int` fails over thousands of digits.
"""

from starlette.convertors import Convertor, register_url_convertor


class _Digits(Convertor[str]):
    regex = "[0-9]{1,19}"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class _Hex(_Digits):
    regex = "[0-9a-f]{1,64}"


def register() -> None:
    """Make `digits` and `hex` known to routes that are built from now on."""
    register_url_convertor("digits", _Digits())
    register_url_convertor("hex", _Hex())
