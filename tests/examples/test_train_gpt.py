"""The main job by its parts: configuration, data, model."""

import json
import re
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt.config import Config, read_config
from gpt.data import Rows, text_files, token_cache
from gpt.model import GPT, lr_fraction, make_optimizer

SCRIPT = Path(__file__).parents[2] / "examples" / "train_gpt.py"


# ---- configuration


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("learning_rate: 3e-4\nsteps: 7\nclip_norm: 2\nwidth:\n")
    config = read_config(None, ["--config", str(path), "--steps", "9"])
    assert (config.learning_rate, config.steps, config.clip_norm, config.width) == (3e-4, 9, 2.0, Config().width)


def test_the_shipped_config_is_valid() -> None:
    assert read_config(None, ["--config", str(SCRIPT.with_name("gpt.yaml"))]).num_micro_batches(num_ranks=4) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "steps must be >= 1, got 0"),
        (["--heads", "5"], r"heads must be a divisor of width \(192\), got 5"),
        (["--dropout", "1"], r"dropout must be in \[0, 1\), got 1.0"),
        (["--learning-rate", "-1"], "learning_rate must be > 0, got -1.0"),
        (["--width", "many"], "invalid int value: 'many'"),
        (["--config", "nowhere.yaml"], "No such file or directory: 'nowhere.yaml'"),
    ],
)
def test_a_bad_flag_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_config(None, arguments)
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("stepz: 3", r"unknown settings \['stepz'\] in .*known: run_dir, "),
        ("steps: 1.5", "invalid int value: '1.5'"),
        ("steps: [1]", "invalid int value"),
        ("steps: {", "expected"),
    ],
)
def test_a_bad_file_is_explained(yaml: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(yaml)
    with pytest.raises(SystemExit):
        read_config(None, ["--config", str(tmp_path / "config.yaml")])
    assert re.search(message, capsys.readouterr().err)


def test_help_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_config(None, ["--help"])
    text = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')} VALUE" in text for name in vars(Config()))
    assert "steps between evaluations; 0: never (default: 20)" in " ".join(text.split())


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match=r"micro_batch \* ranks \(4 \* 3\) must divide global_batch \(32\)"):
        Config().num_micro_batches(num_ranks=3)


def test_the_learning_rate_rises_then_falls() -> None:
    config = Config(steps=20, warmup_steps=4, min_lr_fraction=0.1)
    assert [lr_fraction(step, config) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    fractions = [lr_fraction(step, config) for step in range(4, 21)]
    assert fractions == sorted(fractions, reverse=True)
    assert fractions[-1] == pytest.approx(0.1)


# ---- data


def test_the_cache_holds_the_files_in_order_of_their_names(tmp_path: Path, text: Path) -> None:
    config = Config(data=str(text), cache_dir=str(tmp_path / "cache"))
    expected = b"\n".join((text / name).read_bytes() for name in ("a.txt", "b.txt", "inner/c.txt"))
    assert np.load(token_cache(config)).tobytes() == expected
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [token_cache(config).name]


def test_the_cache_is_written_once_and_again_when_the_text_changes(tmp_path: Path, text: Path) -> None:
    config = Config(data=str(text), cache_dir=str(tmp_path / "cache"))
    first = token_cache(config)
    written_ns = first.stat().st_mtime_ns
    assert (token_cache(config), first.stat().st_mtime_ns) == (first, written_ns)
    (text / "a.txt").write_text("something else")
    assert token_cache(config) != first
    assert np.load(token_cache(config)).tobytes().startswith(b"something else\n")


def test_the_default_text_is_the_standard_library_alone() -> None:
    files = text_files("")
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    assert stdlib / "argparse.py" in files
    assert files == sorted(files)
    assert not [path for path in files if path.suffix != ".py" or "site-packages" in path.parts]


def test_missing_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing is neither a file nor a directory"):
        text_files(str(tmp_path / "nothing"))


def test_too_short_a_text_is_refused() -> None:
    with pytest.raises(ValueError, match="1000 bytes of text make 6 rows to train and 1 to evaluate on"):
        Rows(np.zeros(1000, np.uint8), Config(), rank=0, num_ranks=1)


def rows_of_a_step(ranks: list[Rows]) -> list[int]:
    """Which rows one step of all ranks consists of; in `numbered` text a row's first token is its number."""
    return sorted(int(first) for rows in ranks for tokens, _ in rows.next_step() for first in tokens[:, 0])


@pytest.fixture
def numbered() -> tuple[np.ndarray, Config]:
    """Sixty-four rows to train on, each full of its own number."""
    config = Config(context=8, global_batch=16, micro_batch=2, eval_fraction=0.0, eval_every=0)
    return np.append(np.repeat(np.arange(64, dtype=np.uint8), 8), np.uint8(0)), config


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_every_row_comes_once_per_epoch(numbered: tuple[np.ndarray, Config], num_ranks: int) -> None:
    ranks = [Rows(*numbered, rank, num_ranks) for rank in range(num_ranks)]
    epochs = [[rows_of_a_step(ranks) for _ in range(4)] for _ in range(2)]
    for epoch in epochs:
        assert sorted(row for step in epoch for row in step) == list(range(64))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("num_ranks_after", [1, 2, 8])
def test_a_resumed_position_skips_and_repeats_nothing(
    numbered: tuple[np.ndarray, Config], num_ranks_after: int
) -> None:
    before = [Rows(*numbered, rank, num_ranks=4) for rank in range(4)]
    for _ in range(3):
        rows_of_a_step(before)
    after = [Rows(*numbered, rank, num_ranks_after) for rank in range(num_ranks_after)]
    for rows in after:
        rows.load_state_dict(json.loads(json.dumps(before[0].state_dict())))
    assert [rows_of_a_step(after) for _ in range(6)] == [rows_of_a_step(before) for _ in range(6)]


def test_other_text_is_refused_on_resume(numbered: tuple[np.ndarray, Config]) -> None:
    tokens, config = numbered
    state = Rows(tokens, config, rank=0, num_ranks=1).state_dict()
    with pytest.raises(ValueError, match=r"other data: text_crc32 is \d+ in the checkpoint, \d+ now"):
        Rows(tokens + np.uint8(1), config, rank=0, num_ranks=1).load_state_dict(state)


def test_targets_are_the_next_tokens_and_evaluation_is_held_out() -> None:
    config = Config(context=8, global_batch=4, micro_batch=2, eval_fraction=0.25, eval_rows=4)
    tokens = np.arange(161, dtype=np.uint8)
    rows = Rows(tokens, config, rank=0, num_ranks=1)
    for inputs, targets in [*rows.next_step(), *rows.evaluation()]:
        assert torch.equal(targets, inputs + 1)
    trained = {int(first) // 8 for _ in range(50) for inputs, _ in rows.next_step() for first in inputs[:, 0]}
    shares = [Rows(tokens, config, rank, num_ranks=2).evaluation() for rank in range(2)]
    held_out = [int(inputs[0, 0]) // 8 for share in shares for inputs, _ in share]
    assert trained == set(range(15))
    assert sorted(held_out) == [15, 16, 17, 18]


# ---- model


def test_a_token_does_not_see_later_ones() -> None:
    torch.manual_seed(0)
    model = GPT(Config(width=32, layers=2, heads=2, context=16)).eval()
    position = 5
    tokens = torch.randint(256, (1, 16))
    later_changed = tokens.clone()
    later_changed[:, position + 1 :] = torch.randint(256, (1, 16 - position - 1))
    ignored = torch.full_like(tokens, -100)
    ignored[:, position] = 1
    assert torch.equal(model(tokens, ignored), model(later_changed, ignored))


def test_only_the_matrices_of_the_blocks_decay() -> None:
    config = Config(width=32, layers=1, heads=2)
    model = GPT(config)
    decayed, others = make_optimizer(model, config).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices = ["attended", "down", "qkv", "up"]
    assert sorted(names[id(p)] for p in decayed["params"]) == [f"blocks.0.{name}.weight" for name in matrices]
    assert len(decayed["params"]) + len(others["params"]) == len(names)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
