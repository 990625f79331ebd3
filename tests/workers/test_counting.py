from moorage.workers.counting import counted


def test_one_is_singular_and_all_else_plural() -> None:
    assert [counted(n, "token") for n in (0, 1, 2)] == ["0 tokens", "1 token", "2 tokens"]
    assert [counted(n, "process") for n in (1, 3)] == ["1 process", "3 processes"]
    assert counted(1048576, "prompt token", commas=True) == "1,048,576 prompt tokens"
