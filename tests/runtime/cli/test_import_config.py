import json
from pathlib import Path

import pytest
import yaml

from moorage.runtime.cli import main
from moorage.runtime.config.load import load_cluster_config


def test_the_printed_file_can_be_loaded_and_notes_go_to_stderr(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = tmp_path / "given.yaml"
    given.write_text("model: {type: inf-llm, path: m, n_local: 1024, topk: 8, async_global_stream: true}")
    with pytest.raises(SystemExit) as left:
        main(["import-config", str(given)])
    assert not left.value.code
    printed = capsys.readouterr()
    (tmp_path / "cluster.yaml").write_text(printed.out)
    config = load_cluster_config(tmp_path / "cluster.yaml")
    assert (config.memory.topk, config.long_context.local_windows_len) == (8, 1024)
    assert printed.err.startswith("note: model.async_global_stream: ")
    with pytest.raises(SystemExit):
        main(["import-config", str(given), "--json"])
    values = json.loads(capsys.readouterr().out)
    assert values["system"] == "InfLLM"
    assert values["config"] == yaml.safe_load(printed.out)
    assert len(values["not_carried_over"]) == 1
