import grpc
import pytest

from moorage.runtime.api.status import INTERNAL, STATUS, status_of
from moorage.workers import errors

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.MoorageError)
]


def test_every_error_has_a_status() -> None:
    assert set(STATUS) == set(CLASSES)


@pytest.mark.parametrize("cls", CLASSES)
def test_statuses_exist(cls: type[errors.MoorageError]) -> None:
    status = status_of(cls("why"))
    assert status.grpc in grpc.StatusCode.__members__
    assert 400 <= status.http < 600


def test_other_errors_are_internal_and_subclasses_follow() -> None:
    class Narrow(errors.StoreFull):
        pass

    assert status_of(ValueError()) is INTERNAL
    assert status_of(Narrow("why")).grpc == "RESOURCE_EXHAUSTED"
