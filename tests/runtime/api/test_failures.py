"""Clients get errors of ours as they are, and an id in place of any other; the log says where that arose."""

from __future__ import annotations

from structlog.testing import capture_logs

from moorage.runtime.api.failures import foreseen
from moorage.workers.errors import InvalidRequest, MoorageError


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:  # noqa: BLE001
        return caught


def test_an_error_of_ours_is_told_as_it_is() -> None:
    error = InvalidRequest("top_p: 2 is outside (0, 1]; send 1 to keep every token")
    with capture_logs() as logs:
        assert foreseen(raised(error)) is error
    assert logs == []


def test_any_other_error_has_an_id_and_no_message() -> None:
    with capture_logs() as logs:
        told = foreseen(raised(KeyError("what the user wrote")))
    (line,) = logs
    assert type(told) is MoorageError
    assert str(told) == f"internal error {line['error_id']}; the server's log explains it"
    assert line["kind"] == "KeyError"
    assert line["places"][-1].startswith(__file__)
    assert "wrote" not in repr(line)
