"""Which addresses other hosts can reach."""

import pytest

from moorage.runtime.planning.exposure import exposure_warning


@pytest.mark.parametrize("address", ["127.0.0.1:50051", "127.9.9.9:1", "[::1]:50051", "localhost:50051"])
def test_this_host_alone(address: str) -> None:
    assert exposure_warning(address) is None


@pytest.mark.parametrize("address", ["0.0.0.0:50051", "[::]:50051", "10.1.2.3:50051", "192.168.0.1:1"])
def test_other_hosts_too(address: str) -> None:
    warning = exposure_warning(address)
    assert warning is not None
    assert warning.startswith(f"server.grpc: {address} ")
    assert "no authentication" in warning
    assert "session names" in warning
    assert "\n" not in warning


def test_a_name_that_does_not_resolve_is_told_when_it_is_bound() -> None:
    assert exposure_warning("no-such-host.invalid:50051") is None
