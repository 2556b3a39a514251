"""What the explorer's page understands of a query, run by itself: what completes it, how it is laid out."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import quickjs
from graphql import graphql_sync, print_ast
from graphql.language import parse

from sensorium.serve import graphql
from sensorium.serve.graphql_schema import schema

PAGE = Path(graphql.__file__).with_name("explorer.html")
INTROSPECTION = """{ __schema { queryType { name } mutationType { name } subscriptionType { name }
  types { kind name enumValues { name } inputFields { name type { ...T } }
    fields { name args { name type { ...T } } type { ...T } } } } }
  fragment T on __Type { kind name ofType { kind name ofType { kind name ofType { kind name } } } }"""


@pytest.fixture(scope="module")
def page() -> Any:
    """`page(function, text)`: what the page's function of that name makes of it."""
    found = re.search(r'<script id="language">(.*?)</script>', PAGE.read_text(), re.DOTALL)
    assert found is not None
    context = quickjs.Context()
    context.eval(found[1])
    answer = graphql_sync(schema._schema, INTROSPECTION)
    assert answer.data is not None
    context.eval(f"const schema = readSchema({json.dumps(answer.data['__schema'])});")

    def call(function: str, text: str) -> Any:
        with_schema = "" if function == "prettified" else "schema, "
        return json.loads(context.eval(f"JSON.stringify({function}({with_schema}{json.dumps(text)}))"))

    return call


def offers(page: Any, text: str) -> list[str]:
    return [each["text"] for each in page("offersAt", text)["offers"]]


@pytest.mark.parametrize(
    ("text", "some"),
    [
        ("", ["query", "mutation", "subscription"]),
        ("mut", ["mutation"]),
        ("{ dev", ["device", "devices"]),
        ("{ devices { items { twin { des", ["desired"]),
        ("{ devices { items { latest { metric } conn", ["connectivity"]),
        ("{ a: devices(first: 3) { items { deviceT", ["deviceType"]),
        ("{ devices(fir", ["first"]),
        ("{ devices(first: 3, af", ["after"]),
        ('{ device(deviceId: "{ } (") { meta', ["metadata"]),
        ("{ device(deviceId: 1) { twin { delta } } # { {\n comm", ["command", "commands"]),
        ("mutation { actOnAlarm(action: AC", ["ACK"]),
        ("mutation { actOnAlarm(action: ", ["ACK", "UNACK"]),
        ("mutation { registerDevice(location: {lat", ["latitude"]),
        ("mutation { registerDevice(location: {latitude: 1}, meta", ["metadata"]),
        ("mutation($a: Loc", ["LocationInput"]),
        ('subscription { live(topics: ["a"]) { items { onl', ["online"]),
        ("{ devices { items { ... on Dev", ["Device", "DevicePage"]),
        ("{ devices { items { ... on Device { regis", ["registeredMs"]),
        ("fragment F on Al", ["Alarm", "AlarmPage"]),
        ("fragment F on Alarm { sever", ["severity"]),
        ("query Q($id: String!) { device(deviceId: $id) @include(if: tr", []),
        ("{ devices { nothing { wh", []),
        ("{ devices # de", []),
        ('{ device(deviceId: "de', []),
        ("}}}} ) ] {", ["device"]),
    ],
)
def test_what_completes_a_query(page: Any, text: str, some: list[str]) -> None:
    found = offers(page, text)
    assert set(some) <= set(found), found
    if not some:
        assert found == []


def test_what_is_whole_is_not_offered_again(page: Any) -> None:
    assert offers(page, "{ devices { items { connectivity") == []


@pytest.mark.parametrize(
    "text",
    [
        "{a}",
        "query  Q($id:String!,$n:Int=3,$l:[Int!]!){device(deviceId:$id){...F,twin{delta}}}"
        "fragment F on Device{deviceId}",
        'mutation{sendCommand(deviceId:"a { b",parameters:{a:[1,2,{b:true}],c:"x"}){state}}',
        '{x:devices(first:2){items@include(if:true){...on Device{latest(metrics:["a","b"]){value}}}}}',
        '{ a(b: """block\n{""") c }',
        'subscription S { live(topics: ["a"]) { items { values } } } query R { rules { name } }',
    ],
)
def test_what_is_laid_out_means_the_same_and_stays(page: Any, text: str) -> None:
    once = page("prettified", text)
    assert print_ast(parse(once)) == print_ast(parse(text)), once
    assert page("prettified", once) == once


def test_it_is_laid_out_as_people_write_it(page: Any) -> None:
    written = "# all\n{devices(first:10,after:$a){items{deviceId # its id\nlatest{value}}next}}"
    assert page("prettified", written) == (
        "# all\n{\n  devices(first: 10, after: $a) {\n    items {\n      deviceId\n      # its id\n"
        "      latest {\n        value\n      }\n    }\n    next\n  }\n}\n"
    )
