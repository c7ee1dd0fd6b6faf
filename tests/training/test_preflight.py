"""The check before training: the mask is the assistant's turns and their end tokens, the data fits the sequence."""

from pathlib import Path

import orjson
import pytest
import yaml

from tools import BadInput, Failed
from tools.core import catalog, files, machine, run_folder
from tools.core.finding import Finding
from tools.gguf import find_base
from tools.pipeline import training
from tools.recipes import plan, recipe
from tools.recipes.memory import Settings
from tools.recipes.recipe import Recipe
from tools.training import data_checks, preflight
from tools.training.preflight import Machine

EPISODES = [orjson.loads(line) for line in (run_folder.ROOT / "data" / "test.jsonl").read_bytes().splitlines()[:4]]
TRAINED = [orjson.loads(line) for line in (run_folder.ROOT / "data" / "train.jsonl").read_bytes().splitlines()[:4]]

CPU = catalog.tiers()["cpu"]
NAME = "smollm2-135m-lora"


@pytest.fixture(scope="module")
def folder() -> Path:
    return find_base.resolve("smollm2-135m")


def make(tmp_path: Path, changes: dict[str, object], data: list[object]) -> Recipe:
    """A copy of the committed recipe with a few changes and data of its own."""
    (tmp_path / "data.jsonl").write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in data))
    settings = dict(recipe.open_recipe("smollm2-135m-lora").settings) | changes
    settings["datasets"][0] |= {"path": str(tmp_path / "data.jsonl")} | dict(changes.get("entry", {}))  # type: ignore[call-overload]
    settings.pop("entry", None)
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return recipe.read_recipe(tmp_path / "my.yaml", CPU)


def test_a_good_recipe_is_measured_and_shown(tmp_path: Path, folder: Path) -> None:
    found = preflight.check(make(tmp_path, {}, EPISODES), folder)
    assert found.episodes == 4 and found.preview
    assert 0 < found.trained < found.tokens
    assert found.longest <= found.sequence_len == 2048
    said = [turn["content"] for turn in EPISODES[0]["messages"] if turn["role"] == "assistant"]
    assert green(found) == "".join(f"{text}<|im_end|>" for text in said)


def green(found: preflight.Report) -> str:
    """What the preview shows as trained."""
    assert found.preview
    return "".join(
        found.preview.plain[span.start : span.end] for span in found.preview.spans if "green" in str(span.style)
    )


def flagged(*flags: dict[str, object]) -> dict[str, object]:
    """An episode whose first turns have these keys beside role and content."""
    turns = EPISODES[0]["messages"]
    return {"messages": [*(turn | flag for turn, flag in zip(turns, flags, strict=False)), *turns[len(flags) :]]}


def test_a_turn_that_says_so_is_not_trained(tmp_path: Path, folder: Path) -> None:
    data = flagged({}, {}, {"train": False}, {}, {"train": True})
    found = preflight.check(make(tmp_path, {}, [data]), folder)
    first, *others = (turn["content"] for turn in EPISODES[0]["messages"] if turn["role"] == "assistant")
    assert green(found) == "".join(f"{text}<|im_end|>" for text in others) and first not in green(found)
    whole = preflight.check(make(tmp_path, {}, EPISODES[:1]), folder)
    assert found.tokens == whole.tokens and 0 < found.trained < whole.trained
    assert not [each for each in found.errors if "train" in each.what]
    (advice,) = [each for each in found.findings if "1 answers are not trained" in each.what]
    assert advice.where == f"{tmp_path}/data.jsonl:1"


def test_a_user_s_turn_that_says_so_is_trained_and_told(tmp_path: Path, folder: Path) -> None:
    found = preflight.check(make(tmp_path, {}, [flagged({}, {"train": True})]), folder)
    assert green(found).startswith(f"{EPISODES[0]['messages'][1]['content']}<|im_end|>")
    (advice,) = [each for each in found.findings if "as their `train: true` says" in each.what]
    assert advice.level == "advice" and advice.where == f"{tmp_path}/data.jsonl:1"


def test_a_recipe_that_does_not_read_the_flag_is_refused(tmp_path: Path, folder: Path) -> None:
    old = make(tmp_path, {"entry": {"message_field_training": None}}, [EPISODES[1], flagged({}, {}, {"train": False})])
    (error,) = [each for each in preflight.check(old, folder).errors if "train`" in each.what]
    assert f"1 turns say by `train` whether they are trained (the first: {tmp_path}/data.jsonl:2)" in error.what
    assert error.where.startswith(f"{tmp_path}/my.yaml:") and error.fix == "message_field_training: train"


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ({"weight": 0}, 'message 3 has weight 0, and training reads "train"'),
        ({"loss": False}, 'message 3 has loss False, and training reads "train"'),
        ({"weight": 0.5}, 'message 3 has weight 0.5, and training reads "train"'),
        ({"train": "no"}, "message 3 has train 'no'; it must be true or false"),
    ],
)
def test_a_flag_that_training_does_not_read_is_never_passed_over(
    tmp_path: Path, flag: dict[str, object], says: str
) -> None:
    with pytest.raises(BadInput, match=f"data.jsonl:1: {says}"):
        preflight.read(make(tmp_path, {}, [flagged({}, {}, flag)]))
    kept = flagged({}, {}, {"weight": 1, "loss": None})
    assert preflight.read(make(tmp_path, {}, [kept])) == [kept]


def test_an_episode_longer_than_the_sequence_is_named(tmp_path: Path, folder: Path) -> None:
    found = preflight.check(make(tmp_path, {"sequence_len": 256}, EPISODES), folder)
    (error,) = [each for each in found.errors if "sequence_len" in each.what]
    assert "tokens and sequence_len is 256: 100% of the episodes are dropped" in error.what
    assert error.where == f"{tmp_path}/data.jsonl:1" and "sequence_len: 1024" in error.fix


@pytest.mark.parametrize("wrong", [{"roles_to_train": ["user", "assistant"]}, {"train_on_eos": "none"}])
def test_a_mask_that_trains_something_else_is_refused(tmp_path: Path, folder: Path, wrong: dict[str, object]) -> None:
    found = preflight.check(make(tmp_path, {"entry": wrong}, EPISODES), folder)
    (error,) = [each for each in found.errors if "trained" in each.what]
    assert error.where.endswith("data.jsonl:1") and "not what the assistant says and its end token" in error.what


def test_a_control_token_in_a_text_is_named(tmp_path: Path, folder: Path) -> None:
    turns = [dict(turn) for turn in EPISODES[1]["messages"]]
    turns[2]["content"] += "<|im_end|>"
    found = preflight.check(make(tmp_path, {}, [EPISODES[0], {"messages": turns}]), folder)
    (warning,) = [each for each in found.findings if "control token" in each.what]
    assert warning.level == "warning" and warning.where == f"{tmp_path}/data.jsonl:2"
    assert warning.what.startswith("<|im_end|> stands in a text of the assistant's")


def test_a_check_that_is_not_done_again_repeats_its_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path / "outputs"))
    asked = make(tmp_path, {"warmup_ratio": None, "warmup_steps": 5000}, TRAINED)
    training.check_recipe(asked)
    first = capsys.readouterr().out
    training.check_recipe(asked)
    again = capsys.readouterr().out
    assert "good, as before" in again and "good, as before" not in first
    assert [line for line in first.splitlines() if line.startswith("warning: ")] == again.splitlines()[:-1]


def test_an_error_that_was_forced_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path / "outputs"))
    asked = make(tmp_path, {"entry": {"train_on_eos": "none"}}, TRAINED)
    training.check_recipe(asked, force=True)
    with pytest.raises(Failed, match="1 to fix first"):
        training.check_recipe(asked)


def test_what_the_test_set_has_too_is_an_error_and_repeats_a_warning(tmp_path: Path) -> None:
    path = make(tmp_path, {}, [EPISODES[0], EPISODES[1], EPISODES[0]])
    found = list(data_checks.repeated(path, preflight.read(path)))
    levels = {each.level: each for each in found}
    assert "3 episodes" in levels["error"].what or "2 episodes" in levels["error"].what
    assert levels["warning"].where.endswith("data.jsonl:3") and "line 1" in levels["warning"].what


GPU = Machine("24gb", [machine.Device("NVIDIA GeForce RTX 4090", 23.5, True)], 60, 500, token=False)
OLD = Machine("16gb-turing", [machine.Device("Tesla T4", 14.6, False)], 30, 500, token=False)
NONE = Machine("cpu", [], 20, 500, token=False)
SMALL = Machine("24gb", [machine.Device("NVIDIA GeForce RTX 4090", 23.5, True)], 60, 10, token=False)


PAIR = Machine("4x24gb", [machine.Device("NVIDIA GeForce RTX 3090", 23.5, True)] * 4, 190, 500, token=False)
BIG = Machine("8x80gb", [machine.Device("NVIDIA A100-SXM4-80GB", 79.1, True)] * 8, 400, 5000, token=False)
FULL = {"state_dict_type": "FULL_STATE_DICT"}
DIES = {"gradient_checkpointing_kwargs": {"use_reentrant": False}}


@pytest.mark.parametrize(
    ("name", "changes", "machine", "level", "says"),
    [
        ("24gb/qwen7b-qlora", {}, GPU, "", ""),
        (
            "24gb/qwen7b-qlora",
            {"sequence_len": 32768},
            GPU,
            "error",
            "GiB on each device by prediction; 23.5 are there",
        ),
        ("24gb/qwen7b-qlora", {}, OLD, "error", "bf16 on a Tesla T4, which has none"),
        ("24gb/qwen7b-qlora", {}, OLD, "error", "FlashAttention 2 on a Tesla T4"),
        ("24gb/qwen7b-qlora", {}, NONE, "error", "made for a GPU, and this machine has none"),
        ("24gb/llama3.1-8b-qlora", {}, GPU, "error", "gated and no hub token is here"),
        ("24gb/qwen7b-qlora", {"learning_rate": 1e-2}, GPU, "warning", "learning_rate 0.01 is above 0.0001 to 0.0002"),
        ("24gb/qwen3b-full", {"learning_rate": 1e-4}, GPU, "warning", "advised for full fine-tuning"),
        ("24gb/qwen7b-lora", {"learning_rate": 1e-6}, GPU, "warning", "is below 5e-05 to 0.0001"),
        (
            "24gb/qwen7b-qlora",
            {"gradient_accumulation_steps": 30},
            GPU,
            "advice",
            "the method has 10,272",
        ),
        ("24gb/qwen7b-qlora", {}, SMALL, "error", "GiB of disk to the GGUF; 10 are free"),
        ("24gb/qwen7b-qlora", {"base_model": "some/model"}, GPU, "advice", "its memory is not predicted"),
        ("4x24gb/qwen32b-qlora", {}, PAIR, "", ""),
        ("4x24gb/qwen32b-qlora", {"fsdp_config": FULL}, PAIR, "error", "hold the first process's part of the adapter"),
        ("8x80gb/qwen72b-lora", {}, BIG, "", ""),
        ("8x80gb/qwen72b-lora", DIES, BIG, "error", "an adapter under ZeRO-3 stops in the first backward pass"),
        ("8x80gb/qwen72b-full", {"deepspeed": "zero3_offload_all.json"}, BIG, "error", "of the machine's own memory"),
    ],
)
def test_what_can_go_wrong_is_found_with_its_line(
    name: str, changes: dict[str, object], machine: Machine, level: str, says: str
) -> None:
    path = recipe.find(name)
    found = preflight.quick(recipe.read_recipe(path, changes=changes), machine)
    if not level:
        assert found == []
        return
    (hit,) = [each for each in found if says in each.what]
    assert hit.level == level and hit.fix
    file, _, line = hit.where.rpartition(":")
    assert file == str(path) and 1 <= int(line) <= len(path.read_text().splitlines())


def test_a_path_with_a_tilde_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    mine = make(tmp_path, {"entry": {"path": "~/train.jsonl"}}, EPISODES)
    with pytest.raises(BadInput, match=r"my.yaml:\d+: path: ~/train.jsonl: Axolotl does not read ~"):
        preflight.read(mine)


def test_a_key_to_copy_keeps_its_letters() -> None:
    found = [Finding("advice", "what", "a:1", "lora_r: 8"), Finding("error", "what", "a:2", "remove it")]
    assert preflight.table(found) == ["error: a:2: what. Remove it", "advice: a:1: what. lora_r: 8"]


ONLINE = {"wandb_project": "mine", "wandb_mode": "online"}


@pytest.mark.parametrize(
    ("changes", "login", "level", "says"),
    [
        ({"hub_model_id": "me/mine"}, False, "error", "no hub token is here"),
        ({"hub_model_id": "me/mine"}, True, "", ""),
        ({"wandb_project": "mine"}, False, "advice", "Weights & Biases is offline"),
        ({"use_wandb": True, "wandb_mode": "offline"}, True, "advice", "Weights & Biases is offline"),
        (ONLINE, False, "error", "no login of Weights & Biases"),
        (ONLINE, True, "", ""),
        ({"wandb_project": "mine", "wandb_mode": "disabled"}, False, "", ""),
    ],
)
def test_what_leaves_this_machine_needs_a_login(changes: dict[str, object], login: bool, level: str, says: str) -> None:
    here = Machine("cpu", [], 20, 500, token=login, wandb=login)
    found = preflight.quick(recipe.read_recipe(recipe.find(NAME, "cpu"), changes=changes), here)
    assert [each.level for each in found] == ([level] if level else [])
    assert all(says in each.what and each.fix for each in found)


def test_the_login_of_weights_and_biases_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not preflight.wandb_login()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123\n")
    assert preflight.wandb_login()


def test_a_generated_recipe_edited_in_place_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(recipe.find(NAME).read_text().replace("lora_r: 16", "lora_r: 64"))
    mine = recipe.read_recipe(path)
    assert list(preflight.edited(mine)) == []
    monkeypatch.setattr(preflight.render, "RECIPES", tmp_path)
    (found,) = preflight.edited(mine)
    assert found.level == "advice" and "edited in place" in found.what and found.where == f"{path}:1"


def test_checkpoints_of_another_recipe_are_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path))
    asked = recipe.open_recipe("smollm2-135m-lora", "cpu")
    this = asked.run
    (this.checkpoints / "checkpoint-4").mkdir(parents=True)
    now = {"recipe": files.sha256(asked.path), "data": files.sha256(run_folder.ROOT / "data" / "train.jsonl")}
    files.write_json(this.checkpoints / "inputs.json", now)
    assert list(preflight.leftovers(asked)) == []
    files.write_json(this.checkpoints / "inputs.json", now | {"recipe": "another"})
    (found,) = preflight.leftovers(asked)
    assert "of another recipe" in found.what


def test_a_stopped_build_of_deepspeed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    sharded = recipe.read_recipe(recipe.find(NAME), changes={"deepspeed": "zero2.json"})
    assert list(preflight.stopped_build(sharded)) == []
    lock = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    (found,) = preflight.stopped_build(sharded)
    assert "deepspeed_shm_comm" in found.what and str(lock) in found.fix
    assert list(preflight.stopped_build(recipe.open_recipe(NAME))) == []


def test_a_gpus_recipe_is_not_held_against_the_memory_of_a_machine_without_one(tmp_path: Path) -> None:
    path = recipe.find("80gb/qwen7b-lora")
    small = Machine("cpu", [], memory_gib=8, disk_gib=10_000, token=False)
    found = list(preflight.quick(recipe.read_recipe(path), small))
    assert not [each for each in found if "GiB on each device" in each.what]
    wide = recipe.read_recipe(path, changes={"micro_batch_size": 16})
    (error,) = [each for each in preflight.quick(wide, small) if "GiB on each device" in each.what]
    assert error.level == "error" and "79.1 are there" in error.what


def test_a_shorter_sequence_says_how_many_episodes_it_drops() -> None:
    planned = plan.of(catalog.models()["qwen7b"], catalog.tiers()["24gb"], Settings(16, 16, 2048, 1))
    (shorter,) = [each for each in plan.advice(planned) if each.keys.get("sequence_len") == 1024]
    lengths = [700] * 874 + [1500] * 126
    assert preflight.remedy(shorter, lengths).endswith("GiB and is too short for 12.6% of the episodes")
    assert preflight.remedy(shorter, [700]).endswith("GiB")


def test_zero3_that_would_load_in_32_bits_is_an_error(tmp_path: Path) -> None:
    asked = recipe.open_recipe("qwen72b-lora", "8x80gb")
    assert list(preflight.zero3(asked)) == []
    file = tmp_path / "mine.json"
    file.write_bytes(orjson.dumps({"zero_optimization": {"stage": 3}, "bf16": {"enabled": "auto"}}))
    other = recipe.read_recipe(asked.path, changes={"deepspeed": str(file)})
    (found,) = preflight.zero3(other)
    assert found.level == "error" and f"bf16 is not true in {file}" in found.what
    assert found.where == asked.at("deepspeed")
