"""Both servers with keys and certificates, over real connections."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx2
import pytest

from moorage.client import AsyncClient, Unauthenticated
from moorage.runtime.api.access.keys import KeyFile, Keys
from moorage.runtime.api.access.tls import Tls
from moorage.runtime.api.grpc.server import ApiServer
from moorage.runtime.api.http.server import HttpServer
from moorage.runtime.serving.protocol import GenerateParams
from moorage.runtime.serving.tenant_limits import NO_LIMITS, TenantLimits
from tests.toy_engine import ToyEngine

CHAT = {"messages": [{"role": "user", "content": "hello"}]}
LIMITS = TenantLimits(max_parallel_requests=7)
"""Of the second tenant."""
OPEN = {"/health", "/ready", "/version"}


@dataclass
class Guarded:
    """Two servers that know the keys of two tenants."""

    grpc: str
    http: str
    engine: ToyEngine
    keys: dict[str, str]


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Guarded]:
    file, engine = KeyFile(tmp_path / "keys.json"), ToyEngine()
    made = {name: file.add(name) for name in ("one", "two")}
    file.limit("two", LIMITS)
    keys = Keys(file.path)
    servers = ApiServer(keys=keys), HttpServer(keys=keys)
    addresses = [await server.start("127.0.0.1:0") for server in servers]
    await servers[0].serve(engine)
    servers[1].serve(engine)
    yield Guarded(addresses[0], addresses[1], engine, made)
    for server in servers:
        await server.stop()


async def test_every_http_route_and_method_needs_a_key_but_those_that_tell_nothing(guarded: Guarded) -> None:
    async with httpx2.AsyncClient(base_url=f"http://{guarded.http}") as client:
        key = {"authorization": f"Bearer {guarded.keys['one']}"}
        document = (await client.get("/openapi.json", headers=key)).json()
        tried = 0
        for path in (*document["paths"], "/openapi.json", "/metrics", "/v1/nothing", "/health/", "/health/x"):
            for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"):
                for headers in ({}, {"authorization": "Bearer mk-wrong"}, {"x-api-key": ""}):
                    answer = await client.request(method, path, headers=headers)
                    assert (answer.status_code == 401) == (path not in OPEN), (method, path)
                    tried += 1
        assert tried > 100
        for path in OPEN:
            assert (await client.get(path)).status_code == 200
        for headers in (key, {"x-api-key": guarded.keys["two"]}):
            assert (await client.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == 200


async def test_every_grpc_method_needs_a_key_but_health_checks(guarded: Guarded) -> None:
    async with grpc.aio.insecure_channel(guarded.grpc) as channel:
        methods = ("Generate", "Score", "Tokenize", "Detokenize", "ListModels", "GetStatus", "ListSessions")
        for method in (
            *(f"/moorage.v1.Moorage/{one}" for one in methods),
            "/grpc.reflection.v1alpha.ServerReflection",
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary(method)(b"")
            assert refused.value.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED or "Reflection" in method
    async with AsyncClient(guarded.grpc) as client:
        assert await client.is_ready()
        for call in (client.status(), client.generate([65]).result(), client.sessions.list()):
            with pytest.raises(Unauthenticated, match="an API key is needed"):
                await call


async def test_a_key_is_its_tenant_on_both_servers(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncClient(guarded.grpc, api_key=guarded.keys["one"]) as client:
        await client.generate([65], session="mine").result()
    monkeypatch.setenv("MOORAGE_API_KEY", guarded.keys["two"])
    async with AsyncClient(guarded.grpc) as client:
        await client.generate([65], session="mine").result()
        await client.status()
    async with httpx2.AsyncClient(base_url=f"http://{guarded.http}") as client:
        for name in ("one", "two"):
            headers = {"authorization": f"Bearer {guarded.keys[name]}"}
            await client.post("/v1/chat/completions", json={**CHAT, "session_id": "mine"}, headers=headers)
    seen = [one for one in guarded.engine.seen if isinstance(one, GenerateParams)]
    assert [(one.tenant, one.session) for one in seen] == [
        (name, "mine") for name in ("one", "two", "one", "two")
    ]
    assert [one.limits for one in seen] == [NO_LIMITS, LIMITS, NO_LIMITS, LIMITS]


async def test_a_scoring_is_its_tenants(guarded: Guarded) -> None:
    body = {"prompt": "hello", "max_tokens": 0, "echo": True, "logprobs": 1}
    headers = {"authorization": f"Bearer {guarded.keys['two']}"}
    async with httpx2.AsyncClient(base_url=f"http://{guarded.http}") as client:
        assert (await client.post("/v1/completions", json=body, headers=headers)).status_code == 200
    (asked,) = guarded.engine.seen
    assert (asked.tenant, asked.limits) == ("two", LIMITS)
    assert guarded.engine.checked == [("two", LIMITS)]


async def test_a_page_of_another_site_may_not_call(guarded: Guarded) -> None:
    key = {"authorization": f"Bearer {guarded.keys['one']}"}
    async with httpx2.AsyncClient(base_url=f"http://{guarded.http}") as client:
        for origin, status in ((f"http://{guarded.http}", 200), ("http://evil.example", 403), ("null", 403)):
            answer = await client.get("/v1/models", headers={**key, "origin": origin})
            assert answer.status_code == status
            assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("host", "let_in"),
    [
        ("127.0.0.1:8000", True),
        ("localhost", True),
        ("LOCALHOST.:80", True),
        ("me.localhost:1", True),
        ("[::1]:8000", True),
        ("10.0.0.5", True),
        ("evil.example:8000", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("[::1", False),
        ("", False),
    ],
)
async def test_without_keys_the_server_answers_to_its_own_names_alone(host: str, let_in: bool) -> None:
    for keys, status in ((Keys(any_host=False), 200 if let_in else 403), (Keys(), 200)):
        server = HttpServer(keys=keys)
        url = f"http://{await server.start('127.0.0.1:0')}/health"
        async with httpx2.AsyncClient() as client:
            assert (await client.get(url, headers={"host": host})).status_code == status
        await server.stop()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """A certificate of localhost that is its own authority."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    options = "-x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    command = ["openssl", "req", *options.split(), "-addext", names, "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return Tls(cert, key)


async def test_both_servers_speak_tls(certificates: Tls) -> None:
    certificates.check()
    servers, engine = (ApiServer(tls=certificates), HttpServer(tls=certificates)), ToyEngine()
    grpc_at, http_at = [await server.start("127.0.0.1:0") for server in servers]
    await servers[0].serve(engine)
    servers[1].serve(engine)
    async with AsyncClient(grpc_at, ca_file=certificates.cert) as client:
        assert (await client.generate([65]).result()).text == "A"
    trusting = ssl.create_default_context(cafile=certificates.cert)
    async with httpx2.AsyncClient(base_url=f"https://{http_at}", verify=trusting) as client:
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
    async with httpx2.AsyncClient() as client:
        with pytest.raises(httpx2.TransportError):
            await client.get(f"http://{http_at}/health")
    for server in servers:
        await server.stop()


async def test_with_an_authority_for_clients_only_theirs_are_let_in(certificates: Tls) -> None:
    server = HttpServer(tls=Tls(certificates.cert, certificates.key, certificates.cert))
    address = await server.start("127.0.0.1:0")
    trusting = ssl.create_default_context(cafile=certificates.cert)
    async with httpx2.AsyncClient(base_url=f"https://{address}", verify=trusting) as client:
        with pytest.raises(httpx2.TransportError):
            await client.get("/health")
    trusting.load_cert_chain(certificates.cert, certificates.key)
    async with httpx2.AsyncClient(base_url=f"https://{address}", verify=trusting) as client:
        assert (await client.get("/health")).status_code == 200
    await server.stop()
