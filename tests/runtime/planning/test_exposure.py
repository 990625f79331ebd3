"""Which addresses other hosts can reach, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from moorage.runtime.config.schema import ServerSection
from moorage.runtime.planning.exposure import check_exposure, is_exposed
from moorage.workers.errors import InvalidConfig


@pytest.mark.parametrize("address", ["127.0.0.1:50051", "127.9.9.9:1", "[::1]:50051", "localhost:50051"])
def test_this_host_alone(address: str) -> None:
    assert not is_exposed(address)
    assert check_exposure(ServerSection(grpc=address, http=address)) == []


@pytest.mark.parametrize("address", ["0.0.0.0:50051", "[::]:50051", "10.1.2.3:50051", "192.168.0.1:1"])
def test_other_hosts_too(address: str) -> None:
    with pytest.raises(InvalidConfig, match="no API keys are set") as refused:
        check_exposure(ServerSection(grpc=address))
    assert "\n" not in str(refused.value)
    warning, http = check_exposure(ServerSection(grpc=address, http=address, keys="none"))
    assert warning.startswith(f"server.grpc: {address} ")
    assert http.startswith(f"server.http: {address} ")
    assert "no authentication" in warning
    assert "session names" in warning
    assert "\n" not in warning


def test_keys_and_certificates_leave_nothing_to_say() -> None:
    (warning,) = check_exposure(ServerSection(grpc="0.0.0.0:1", keys=Path("keys.json")))
    assert "no authentication" not in warning
    assert "no encryption" in warning
    pem = Path("a.pem")
    assert check_exposure(ServerSection(grpc="0.0.0.0:1", keys=pem, tls_cert=pem, tls_key=pem)) == []


def test_a_name_that_does_not_resolve_is_told_when_it_is_bound() -> None:
    assert not is_exposed("no-such-host.invalid:50051")
