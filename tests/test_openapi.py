"""`/openapi.json` is true: complete, valid, its examples work, and schemathesis finds nothing that it does not say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from redis import Redis
from rq import Queue
from schemathesis.specs.openapi.checks import positive_data_acceptance
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from api import openapi_admin
from api.openapi import document
from api.routes import Routes
from engine import resume, views
from engine.embedded import Server
from engine.keys import Keys
from engine.lake import Lake
from engine.partitions import partition_of
from engine.quality.columns import table
from engine.quality.facts import Fact
from engine.quality.files import TOPIC
from engine.resume import Entry
from engine.settings import Settings
from engine.views import View
from tests.harness import PARTITIONS, START
from tests.servers import ApiProcess, player, service

EXAMPLES_PER_OPERATION = 60
ACCOUNT = "ann"
# What no schema can say, or 500 signals of a kilobyte each.
UNSAID = re.compile(
    r"printable characters|device is required where|got `float`|as double|exceeds \d+ bytes|cursor must be|from before to|none of live"
    r"|from must be before to|is none of|no dimension|each once|each name once|at most \d+|neither name=value|more than [\d,]+ points"
)
SERVICE = (
    "/v1/contents",
    "/v1/signals",
    "/v1/tokens/revoke",
    "/v1/accounts/{account}",
    "/v1/jobs/{job}",
    "/v1/audit/blocks",
    "/v1/behaviour",
    "/v1/behaviour/dropoff",
    "/v1/alerts",
    "/v1/alerts/history",
    "/v1/quality",
    "/v1/quality/worst",
    "/v1/quality/players",
    "/v1/quality/sessions/{session}",
)

# CMCD is text; schemathesis knows how to send only types that are in use elsewhere.
schemathesis.serializer.alias(["application/cmcd", "application/cmcd+text"], "text/plain")
schema = schemathesis.openapi.from_dict(document())
schema.config.generation.update(deterministic=True, with_security_parameters=False)


@pytest.fixture(scope="module")
def api(single: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    settings = {
        "prefix": "openapi",
        "takeovers_max": 1_000_000,
        "resume_wait_ms": 10,
        "ask_wait_s": 0.05,
        "stream_max_s": 0.05,
    }
    lake = tmp_path_factory.mktemp("lake")
    where = partition_of(ACCOUNT, PARTITIONS)
    film = Fact(fact="play", at=START, account=ACCOUNT, session="9b2f7c1e", partition=where, stream_ms=START, ms=9_000)
    Lake(lake / "quality").add(TOPIC, table([film]), {where: f"{START}-0"})
    with ApiProcess(single.url, tmp_path_factory.mktemp("api"), lake_dir=lake, **settings) as process:
        project(single)
        yield process


def project(server: Server) -> None:
    """What the workers would have made of some earlier heartbeats: there are none here."""
    keys = Keys("openapi", PARTITIONS)
    entry = Entry(position=600.0, kind="vod", session="s-0", device="tv", updated_at=START)
    view = View("", "tv", "film-1", "vod", started_at=START - 9_000, last_seen_at=START)
    with Redis.from_url(server.url) as client:
        client.hset(resume.key(keys.projection("resume", 1), ACCOUNT), resume.field("", "film-1"), resume.encode(entry))
        client.hset(keys.contents, "film-1", '{"title": "A film", "kind": "vod"}')
        space, name = keys.projection("views", 1), views.name_of("s-0", 1, START - 9_000)
        client.hset(space.key("of", ACCOUNT), name, views.encode(view))
        client.zadd(space.key("account", ACCOUNT), {name: START - 9_000})
        Queue("openapi:asks", connection=client).enqueue("workers.audit.blocks", {}, job_id=openapi_admin.JOB)


def token_for(path: str, limit: int) -> str:
    """What a caller of the route would hold."""
    return service("signals", "admin", "read") if path in SERVICE else player(ACCOUNT, max_streams=limit)


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, said) for path, item in document()["paths"].items() for method, said in item.items()]


def validator(part: dict[str, Any]) -> jsonschema_rs.Validator:
    """For one schema of the document, with its components at hand."""
    return jsonschema_rs.Draft202012Validator(part | {"components": document()["components"]})


def examples(media: dict[str, Any]) -> list[Any]:
    named = [example["value"] for example in media.get("examples", {}).values()]
    return named + ([media["example"]] if "example" in media else [])


def test_document_is_valid() -> None:
    assert [error.message for error in OPENAPI_31_VALIDATOR.iter_errors(document())] == []
    for part in document()["components"]["schemas"].values():
        jsonschema_rs.meta.validate(part)
    names = [said["operationId"] for _, _, said in operations()]
    assert len(names) == len(set(names))


def test_every_route_is_described_and_every_description_has_its_route() -> None:
    services: Any = SimpleNamespace(settings=Settings())
    routed = {
        (re.sub(r":\w+", "", route.path), method) for route in Routes(services).all() for method in route.methods or ()
    }
    # HEAD comes with every GET.
    routed -= {(path, "HEAD") for path, _ in routed if path != "/v1/edge/authorize/{original}"}
    assert routed == {(path, method.upper()) for path, method, _ in operations()}


def test_every_parameter_of_a_path_is_described() -> None:
    for path, _, said in operations():
        described = {p["name"] for p in said.get("parameters", []) if p["in"] == "path"}
        assert described == set(re.findall(r"{(\w+)}", path)), path


def test_every_body_and_answer_has_an_example_and_all_fit_their_schema() -> None:
    for path, method, said in operations():
        bodies = [said["requestBody"]] if "requestBody" in said else []
        for body in [*bodies, *said["responses"].values()]:
            for media in body.get("content", {}).values():
                assert examples(media), (path, method)
                for example in examples(media):
                    validator(media["schema"]).validate(example)


def test_served(api: ApiProcess) -> None:
    assert api.get("/openapi.json").json() == json.loads(json.dumps(document()))


def request_examples() -> list[Any]:
    """Each (path, method, content type, body) of the document."""
    found = []
    for path, method, said in operations():
        content = said.get("requestBody", {}).get("content", {})
        bodies = [(kind, example) for kind, media in content.items() for example in examples(media)]
        for number, (kind, example) in enumerate(bodies or [("", None)]):
            found.append(pytest.param(path, method, kind, example, id=f"{said['operationId']}-{number}"))
    return found


@pytest.mark.parametrize(("path", "method", "kind", "example"), request_examples())
def test_request_examples_work(api: ApiProcess, path: str, method: str, kind: str, example: Any) -> None:
    said = document()["paths"][path][method]
    given = {place: {p["name"]: p["example"] for p in said.get("parameters", []) if p["in"] == place} for place in ("path", "query", "header")}  # fmt: skip
    answer = api.request(
        method.upper(), path.format(**given["path"]), token=token_for(path, 1000), params=given["query"],
        headers=given["header"] | ({"Content-Type": kind} if kind else {}),
        content=example if isinstance(example, str) else None if example is None else json.dumps(example),
    )  # fmt: skip
    assert 200 <= answer.status_code < 300, answer.text
    response = said["responses"][str(answer.status_code)]
    if "content" in response:
        kind = answer.headers["content-type"].split(";")[0]
        found = answer.json() if kind == "application/json" else answer.text
        validator(response["content"][kind]["schema"]).validate(found)
    else:
        assert answer.content == b""


def test_streams_of_every_kind_fit_the_schema_of_a_session(single: Server, tmp_path: Path, prefix: str) -> None:
    """Live without a position, under no rule at all, and known to the backend only."""
    plans = 'default = "p"\n[plans.p]\n[[plans.p.rules]]\nname = "vod"\nlimit = 9\nkind = "vod"\n'
    with ApiProcess(single.url, tmp_path, prefix=prefix, plans=plans) as api:
        api.beat(player(ACCOUNT), "live", "d1", kind="live", position=0.0)
        body = {"session": "none", "device": "d2", "content": "c", "kind": "live", "state": "paused", "seq": 0}
        assert api.post("/v1/heartbeats", token=player(ACCOUNT), content=json.dumps(body)).status_code == 200
        signal = {"account": ACCOUNT, "device": "d3", "content": "c", "evidence": "manifest"}
        assert api.post("/v1/signals", token=service("signals"), content=json.dumps(signal)).status_code == 200
        said = api.get(f"/v1/accounts/{ACCOUNT}/sessions", token=player(ACCOUNT)).json()
    validator({"$ref": "#/components/schemas/Sessions"}).validate(said)
    found = {item["device"]: (item["rules"], item["seq"] is None, item["origin"]) for item in said["items"]}
    assert found == {"d1": ([], False, "player"), "d2": ([], False, "player"), "d3": (["vod"], True, "backend")}


def good_input_is_accepted(ctx: Any, response: Any, case: Any) -> None:
    """Schemathesis' own check, without what the schema leaves open."""
    if case.meta.generation.mode.is_positive and response.status_code in (400, 413) and case.media_type != "text/plain":
        assert UNSAID.search(response.text), response.text


@schema.parametrize()
@settings(
    max_examples=EXAMPLES_PER_OPERATION, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None,
)  # fmt: skip
def test_against_a_running_server(case: Any, api: ApiProcess) -> None:
    """No 5xx, no status, content type, header or body that the document does not promise; bad input is refused,
    good input is not. Limit 1, so that decisions of both kinds come back."""
    case.call_and_validate(
        base_url=api.base, headers={"Authorization": f"Bearer {token_for(case.operation.path, 1)}"},
        additional_checks=[good_input_is_accepted], excluded_checks=[positive_data_acceptance],
    )  # fmt: skip
