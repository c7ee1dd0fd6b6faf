"""Composing and following a training: what a CPU needs, what is resumed, what is noted of its events."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import orjson
import pytest

from tools import BadInput, Failed
from tools.core import catalog, files, run_folder
from tools.core.process import following
from tools.core.run_folder import Run
from tools.gguf import find_base
from tools.recipes import plan, recipe
from tools.training import events, run_axolotl
from tools.training.events import Event
from tools.training.run_axolotl import Launch

RECIPE = "smollm2-135m-lora"
CPU = catalog.tiers()["cpu"]


@pytest.fixture
def this(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


@pytest.fixture(scope="module")
def folder() -> Path:
    return find_base.resolve("smollm2-135m")


def test_the_composed_recipe_keeps_the_recipe_and_stays_in_the_runs_folder(folder: Path) -> None:
    asked = recipe.open_recipe(RECIPE)
    composed = run_axolotl.compose(asked, str(folder), Launch())
    changed = {key for key in composed if composed[key] != asked.settings.get(key)}
    assert changed - {"bf16", "plugins"} == {
        "base_model",
        "dataset_num_proc",
        "output_dir",
        "dataset_prepared_path",
        "auto_resume_from_checkpoints",
    }
    assert composed["base_model"] == str(folder)
    assert composed["output_dir"].startswith(str(asked.run.folder))


@pytest.mark.parametrize(
    ("composed", "offline"),
    [
        ({}, True),
        ({"hub_model_id": "me/mine"}, False),
        ({"attn_implementation": "sdpa"}, True),
        ({"attn_implementation": "flash_attention_2"}, find_spec("flash_attn") is not None),
    ],
)
def test_a_base_that_is_here_needs_no_hub_unless_the_result_goes_there_or_a_kernel_comes_from_it(
    tmp_path: Path, composed: dict[str, str], offline: bool
) -> None:
    _, environment = run_axolotl.command(tmp_path / "a", {"base_model": str(tmp_path), **composed}, CPU, Launch())
    assert ("HF_HUB_OFFLINE" in environment) == offline


@pytest.mark.parametrize("tier", ["cpu", "24gb"])
def test_one_process_has_a_rank_where_deepspeed_asks_for_one(tmp_path: Path, tier: str) -> None:
    for composed, program in (({}, "axolotl"), ({"deepspeed": "zero3_offload_all.json"}, "torchrun")):
        settings = {"base_model": str(tmp_path), **composed}
        start, _ = run_axolotl.command(tmp_path / "a", settings, catalog.tiers()[tier], Launch())
        assert Path(start[0]).name == program


def test_more_data_are_tokenised_by_more_processes(folder: Path) -> None:
    assert [run_axolotl.tokenisers(size, 16) for size in (0, 600_000, 25_000_000, 10**10)] == [1, 1, 4, 16]
    assert run_axolotl.compose(recipe.open_recipe(RECIPE), str(folder), Launch())["dataset_num_proc"] == 1
    given = run_axolotl.compose(recipe.open_recipe(RECIPE, pairs=["dataset_num_proc=3"]), str(folder), Launch())
    assert given["dataset_num_proc"] == 3


def test_the_fingerprint_changes_with_the_recipe(tmp_path: Path, folder: Path) -> None:
    mine = recipe.open_recipe(RECIPE)
    other = tmp_path / "my.yaml"
    other.write_text(mine.text.replace("lora_r: 16", "lora_r: 32"))
    first, second = (run_axolotl.fingerprint(each, folder) for each in (mine, recipe.read_recipe(other)))
    assert {key for key in first if first[key] != second[key]} == {"recipe"}
    assert run_axolotl.fingerprint(recipe.open_recipe(RECIPE, pairs=["lora_r=32"]), folder) == first | {"lora_r": 32}


def test_half_written_checkpoints_are_removed_and_whole_ones_kept(this: Run) -> None:
    run_axolotl.prepare(this, {"recipe": "a"})
    for name, state in (("checkpoint-1", b"{}"), ("checkpoint-2", b'{"half'), ("checkpoint-3", None)):
        (this.checkpoints / name).mkdir()
        if state is not None:
            (this.checkpoints / name / "trainer_state.json").write_bytes(state)
    run_axolotl.prepare(this, {"recipe": "a"})
    assert [item.name for item in this.checkpoints.glob("checkpoint-*")] == ["checkpoint-1"]


def test_checkpoints_of_another_recipe_or_data_are_not_resumed(this: Run) -> None:
    run_axolotl.prepare(this, {"recipe": "a"})
    (this.checkpoints / "checkpoint-1").mkdir()
    (this.checkpoints / "checkpoint-1" / "trainer_state.json").write_bytes(b"{}")
    with pytest.raises(BadInput, match="checkpoint-1: of another recipe, data or base; make train FORCE=1"):
        run_axolotl.prepare(this, {"recipe": "b"})
    assert run_axolotl.checkpoints(this)
    run_axolotl.prepare(this, {"recipe": "b"}, force=True)
    assert not list(this.checkpoints.glob("checkpoint-*"))
    assert orjson.loads((this.checkpoints / "inputs.json").read_bytes()) == {"recipe": "b"}


def test_another_trainings_adapter_is_kept_unless_forced(this: Run) -> None:
    this.adapter.mkdir(parents=True)
    with pytest.raises(BadInput, match="adapter: of another recipe, data or base"):
        run_axolotl.prepare(this, {"recipe": "b"})
    run_axolotl.prepare(this, {"recipe": "b"}, force=True)
    run_axolotl.prepare(this, {"recipe": "b"})  # begun with leave: it goes on


def test_a_second_training_in_the_same_folder_stops_and_says_who_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path))
    asked = recipe.open_recipe(RECIPE, "cpu")
    text = f"""
from pathlib import Path
from tools.recipes import plan, recipe
with recipe.read_recipe(Path({str(asked.path)!r})).run.held("train"): print(flush=True); input()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", text], cwd=run_folder.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout and other.stdout.readline()
    (tmp_path / "base").mkdir()
    with pytest.raises(Failed, match=f"process {other.pid} .* is writing it"):
        run_axolotl.train(asked, tmp_path / "base", Launch())
    other.communicate("\n")


def test_a_log_of_a_training_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    text = "import os\nfor _ in range(3): print('token', os.environ['HF_TOKEN'], end='', flush=True)\nprint()"
    command = [sys.executable, "-c", text]
    with files.log(tmp_path / "train.log") as log, following(command, log) as (_, lines):
        assert len(list(lines)) == 1
    assert (tmp_path / "train.log").read_text() == "token ***token ***token ***\n"


def test_going_on_needs_a_checkpoint_of_the_same_training(this: Run) -> None:
    with pytest.raises(BadInput, match="no checkpoint to go on from"):
        run_axolotl.prepare(this, {"recipe": "a"}, resume=True)
    run_axolotl.prepare(this, {"recipe": "a"})
    with pytest.raises(BadInput, match="of another recipe, data or base"):
        run_axolotl.prepare(this, {"recipe": "b"}, resume=True)


@pytest.mark.parametrize(("world", "micro", "accumulation"), [(1, 4, 4), (2, 4, 2), (3, 2, 3), (8, 2, 1), (16, 1, 1)])
def test_the_rows_of_an_update_stay_whatever_the_processes(world: int, micro: int, accumulation: int) -> None:
    changes = {"micro_batch_size": 4, "gradient_accumulation_steps": 4}
    asked = recipe.read_recipe(recipe.find("24gb/qwen7b-qlora"), changes=changes)
    made = run_axolotl.spread(asked, world)
    assert made == {"micro_batch_size": micro, "gradient_accumulation_steps": accumulation}
    with pytest.raises(BadInput, match="qwen7b-qlora.yaml: 16 rows an update are too few for 25 processes"):
        run_axolotl.spread(asked, 25)


def test_rows_are_split_over_processes_as_axolotl_can() -> None:
    changes = {"context_parallel_size": 4, "micro_batch_size": 1, "gradient_accumulation_steps": 2, "deepspeed": None}

    def spread(name: str, world: int, **more: object) -> dict[str, int]:
        return run_axolotl.spread(recipe.read_recipe(recipe.find(name), changes=changes | more), world)

    assert spread("4x24gb/qwen7b-lora", 4) == {"micro_batch_size": 1, "gradient_accumulation_steps": 2}
    sharded = spread("4x24gb/qwen7b-qlora", 4, context_parallel_size=2)
    assert sharded == {"micro_batch_size": 1, "gradient_accumulation_steps": 2}
    with pytest.raises(BadInput, match=r"lora.yaml:\d+: context_parallel_size 4: it does not divide 2 processes"):
        spread("4x24gb/qwen7b-lora", 2)
    with pytest.raises(BadInput, match="without FSDP2 all 4 processes share each row; context_parallel_size: 4"):
        spread("4x24gb/qwen7b-lora", 4, context_parallel_size=2)
    with pytest.raises(BadInput, match="no rows under DeepSpeed"):
        spread("4x24gb/qwen7b-lora", 4, deepspeed="recipes/deepspeed/zero3.json")


def test_a_failure_is_told_with_what_helps(this: Run) -> None:
    tier, model = catalog.tiers()["80gb"], catalog.models()["qwen7b"]
    # As it was composed: the base is a folder of the hub's cache, whose name says nothing.
    changes = {"base_model": "/hub/snapshots/a09a35458", "lora_dropout": 0}
    composed = recipe.read_recipe(recipe.find("80gb/qwen7b-lora"), changes=changes).settings
    planned = plan.of(model, tier, plan.from_recipe(composed, tier))
    this.folder.mkdir(parents=True)
    log = this.folder / "train.log"
    log.write_text("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n")
    said = run_axolotl.failure(log, None, 1, this, planned)
    # What wins a tenth of the memory and more: not rank 8, which wins a third of a GiB.
    assert "out of memory" in said and "recompute layers wins" in said and "slower" in said and "rank" not in said
    assert "a smaller micro batch or sequence" in run_axolotl.failure(log, None, 1, this, None)
    log.write_text(
        "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 9957277696 bytes.\n"
    )
    assert "out of memory" in run_axolotl.failure(log, None, 1, this, None)
    log.write_text("FloatingPointError: the loss is nan at step 7\n")
    for name in ("checkpoint-4", "checkpoint-6"):
        (this.checkpoints / name).mkdir(parents=True)
    (this.checkpoints / "checkpoint-4" / "trainer_state.json").write_bytes(b"{}")
    said = run_axolotl.failure(log, Event("diverged", step=7), 1, this, planned)
    assert "at step 7; the last good checkpoint is checkpoint-4" in said
    log.write_text("ValueError: no such dataset\n")
    assert run_axolotl.failure(log, None, 3, this, planned) == (
        "Axolotl ended with status 3: ValueError: no such dataset"
    )


def test_the_notes_of_a_training_are_those_of_its_last_steps() -> None:
    told = [
        Event("stage", "loading the model"),
        Event("step", step=0, steps=280),
        Event("step", step=1, steps=280, loss=1.213, tokens=4000, device_gib=7.5),
        Event("step", step=280, steps=280, loss=2.1e-2, tokens=9000, tokens_per_second=2100.0, device_gib=7.5),
        Event("evaluated", step=280, loss=0.4),
        Event("step", step=280, steps=280),
        Event("saved", step=280, checkpoint="checkpoint-280"),
    ]
    notes, ended = run_axolotl.follow_events(told)
    assert ended is None
    assert notes == {
        "steps": 280,
        "loss": 2.1e-2,
        "eval_loss": 0.4,
        "tokens": 9000,
        "tokens_per_second": 2100.0,
        "device_gib": 7.5,
    }
    assert run_axolotl.title(notes) == "train: loss 0.021, 2100 tokens/s, 7.5 GiB"


def test_a_stop_is_told_apart_from_the_end() -> None:
    stopped = Event("stopped", step=7)
    told = [Event("step", step=7, steps=280), stopped, Event("stage", "writing what was learned")]
    assert run_axolotl.follow_events(told) == ({"steps": 280}, stopped)


def test_a_stop_says_what_is_kept(this: Run) -> None:
    assert run_axolotl.what_is_kept(this, None) == "stopped before the first checkpoint; the same command begins anew"
    for step in (4, 12):
        (this.checkpoints / f"checkpoint-{step}").mkdir(parents=True)
        (this.checkpoints / f"checkpoint-{step}" / "trainer_state.json").write_bytes(b"{}")
    goes_on = f"the same command goes on from checkpoint-12 in {this.checkpoints}"
    assert run_axolotl.what_is_kept(this, None) == f"stopped; {goes_on}"
    assert run_axolotl.what_is_kept(this, Event("stopped", step=12)) == f"stopped at step 12; {goes_on}"


def test_the_reason_is_the_last_exception_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text("loading\nValueError: no such dataset\n  0%| | 0/2\n")
    assert run_axolotl.last_error(log) == "ValueError: no such dataset"
    log.write_text("tools.Failed: no token of these games can be trained\n  0%| | 0/2\n")
    assert run_axolotl.last_error(log) == "tools.Failed: no token of these games can be trained"
    log.write_text(f"Failed to load a kernel of the hub\nKilled\n{events.MARK}{{}}\n")
    assert run_axolotl.last_error(log) == "Killed"
