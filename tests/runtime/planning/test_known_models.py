import pytest

from moorage.runtime.planning.known_models import MODEL_PRESETS, find_model
from moorage.runtime.planning.memory import num_parameters
from moorage.workers.errors import InvalidModel

PARAMETERS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "internlm2.5-7b-1m": 7_737_708_544,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_630_071_296,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "yi-9b-200k": 8_829_407_232,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "granite-3.3-8b": 8_170_864_640,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 3_880_263_168,
    "glm-4-9b": 9_399_951_360,
    "glm-4-9b-1m": 9_483_857_920,
    "olmoe-1b-7b": 6_919_161_856,
    "olmo-3-7b": 7_298_011_136,
    "olmo-2-7b": 7_298_617_344,
    "olmo-2-32b": 32_234_279_936,
    "phi-3.5-mini": 3_821_079_552,
    "phi-3-medium-4k": 13_960_238_080,
    "phi-4": 14_659_507_200,
    "phi-4-mini": 3_836_021_760,
    "smollm3-3b": 3_075_098_624,
    "command-r-v01": 34_980_831_232,
    "command-r-plus": 103_810_674_688,
    "command-r7b": 8_028_033_024,
    "aya-23-8b": 8_028_033_024,
    "stablelm-3b-4e1t": 2_795_443_200,
    "stablelm-2-1.6b": 1_644_515_328,
    "stablelm-2-12b": 12_143_185_920,
}
"""As published in the checkpoints' indices."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_figures_give_the_published_parameter_count(name: str) -> None:
    assert num_parameters(MODEL_PRESETS[name]) == PARAMETERS[name]


def test_names_in_any_case_and_a_hint_for_others() -> None:
    assert find_model("InternLM2.5-7B-1M") is MODEL_PRESETS["internlm2.5-7b-1m"]
    with pytest.raises(InvalidModel, match=r"did you mean llama-3\.1-8b\?"):
        find_model("lama-3.1-8b")


def test_a_path_that_does_not_exist_is_told_without_the_names() -> None:
    with pytest.raises(InvalidModel) as refused:
        find_model("models/llama-3-8b")
    assert str(refused.value) == "models/llama-3-8b: no such directory or model preset; check the path"
