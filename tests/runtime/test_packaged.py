from __future__ import annotations

import pytest

from moorage.runtime.cli import main
from moorage.runtime.packaged import DEPLOY, example_file, examples
from moorage.workers.errors import NotFound


def test_every_example_cluster_file_has_a_name() -> None:
    assert examples() == ["gpu", "local", "million", "reference"]
    assert example_file("local") == DEPLOY / "local.yaml"


def test_an_unknown_name_brings_the_known_ones() -> None:
    with pytest.raises(NotFound, match="--example nothing: no such example; choose one of gpu, local"):
        example_file("nothing")


@pytest.mark.parametrize("words", [("launch",), ("config",), ("config", "a.yaml", "--example", "local")])
def test_a_command_takes_a_file_or_an_example(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(list(words))
    assert left.value.code == 2
    assert "--example NAME" in capsys.readouterr().err


def test_the_configuration_of_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["config", "--example", "local", "--file-only"])
    assert left.value.code in (0, None)
    assert "moorage-pilot" in capsys.readouterr().out
