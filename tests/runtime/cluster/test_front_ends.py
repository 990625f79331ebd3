"""The gRPC and the HTTP server of a cluster, started together."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from moorage.client import AsyncClient
from moorage.runtime.api.access.keys import KeyFile
from moorage.runtime.cluster import front_ends
from moorage.runtime.cluster.front_ends import FrontEnds
from moorage.runtime.config.schema import ServerSection
from moorage.workers.errors import InvalidConfig, Unavailable
from tests.toy_engine import ToyEngine

LOCAL = "127.0.0.1:0"
Ends = Callable[..., FrontEnds]


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    made: list[FrontEnds] = []

    def make(**server: object) -> FrontEnds:
        made.append(FrontEnds(ServerSection.model_validate({"grpc": LOCAL, **server})))
        return made[-1]

    yield make
    for each in made:
        await each.stop()


@pytest.fixture
def taken() -> Iterator[str]:
    """An address that something else listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield f"127.0.0.1:{other.getsockname()[1]}"


async def test_one_engine_answers_on_both(ends: Ends) -> None:
    both, engine = ends(http=LOCAL), ToyEngine()
    addresses = await both.start()
    await both.serve(engine)
    async with AsyncClient(addresses.grpc) as client, httpx2.AsyncClient() as http:
        assert (await client.generate([65]).result()).text == "A"
        answer = await http.post(f"http://{addresses.http}/v1/completions", json={"prompt": "B"})
        assert answer.json()["choices"][0]["text"] == "B"
    assert len(engine.seen) == 2


async def test_without_http_there_is_grpc_alone(ends: Ends) -> None:
    addresses = await ends(http=False).start()  # `off` in YAML
    assert addresses.http is None


async def test_where_the_default_port_is_in_use_a_free_one_is_taken(
    ends: Ends, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_ends, "DEFAULT_HTTP", taken)
    addresses = await ends(http="auto").start()
    assert addresses.http not in (None, taken)
    async with httpx2.AsyncClient() as http:
        assert (await http.get(f"http://{addresses.http}/health")).status_code == 200


async def test_a_port_that_was_asked_for_is_not_exchanged(ends: Ends, taken: str) -> None:
    with pytest.raises(Unavailable, match=f"server.http: {taken} can't be bound"):
        await ends(http=taken).start()


async def test_without_the_packages_auto_is_off_and_an_address_is_refused(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_ends, "_HTTP_PACKAGES", ("no_such_package",))
    assert (await ends(http="auto").start()).http is None
    with pytest.raises(InvalidConfig, match=r"no_such_package is not installed; .*moorage\[http\]"):
        await ends(http=LOCAL).start()


async def test_both_need_the_keys_of_the_configuration(ends: Ends, tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    key = file.add("one")
    both = ends(http=LOCAL, keys=file.path)
    addresses = await both.start()
    await both.serve(ToyEngine())
    async with AsyncClient(addresses.grpc, api_key=key) as client, httpx2.AsyncClient() as http:
        assert (await client.status()).state == "serving"
        url = f"http://{addresses.http}/status"
        assert (await http.get(url)).status_code == 401
        assert (await http.get(url, headers={"x-api-key": key})).json()["state"] == "serving"


async def test_an_address_that_other_hosts_reach_needs_keys(ends: Ends) -> None:
    with pytest.raises(InvalidConfig, match="no API keys are set"):
        await ends(http="0.0.0.0:0").start()
