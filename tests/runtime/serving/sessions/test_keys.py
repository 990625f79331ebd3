"""A session is named together with its tenant."""

from __future__ import annotations

import pytest

from moorage.runtime.serving.sessions.keys import session_key, tenant_and_name


@pytest.mark.parametrize(
    ("tenant", "name"), [("", "talk"), ("ann", "talk"), ("ann", "bob talk"), ("", "é:/")]
)
def test_key_and_back(tenant: str, name: str) -> None:
    assert tenant_and_name(session_key(tenant, name)) == (tenant, name)


def test_tenants_never_meet() -> None:
    assert len({session_key(tenant, name) for tenant in ("", "a", "ab") for name in ("a", "b", "ba")}) == 9
