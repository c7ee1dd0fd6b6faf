"""The demo on a GPU: what it trains by the GPU's memory and speed, and the episodes that it makes."""

from pathlib import Path

import orjson
import pytest

from tools.core import catalog, machine, run_folder, trajectory
from tools.core.machine import Device
from tools.pipeline import demo
from tools.recipes import recipe, schema
from tools.recipes.recipe import Recipe
from tools.training import recipe_checks
from tools.worlds.household import episodes
from tools.worlds.household.facts import facts

NAME = "smollm2-135m-lora"
H100 = Device("NVIDIA H100 80GB HBM3", 79.65, bf16=True)
GPUS = [
    (H100, "80gb"),
    (Device("NVIDIA GeForce RTX 3060", 12.0, bf16=True), "12gb"),
    (Device("Tesla T4", 15.0, bf16=False), "16gb-turing"),
]


def on(device: Device, name: str = NAME, pairs: tuple[str, ...] = ()) -> Recipe:
    return recipe.open_recipe(name, machine.tier([device]), pairs=pairs)


@pytest.mark.parametrize(("device", "tier"), GPUS)
def test_a_gpu_chooses_the_recipe_by_its_memory_and_the_epochs_by_its_speed(device: Device, tier: str) -> None:
    asked = on(device)
    model = catalog.models()["smollm2-135m"]
    changes = demo.changed(asked, model, flash=False)
    assert asked.tier.key == tier and changes["learning_rate"] == 7e-4
    epoch = demo.epoch_seconds(model, asked.tier, {**asked.settings, **changes})
    epochs, known = changes["num_epochs"], demo.facts()
    nearest = abs(epochs * epoch - known.seconds) <= epoch / 2
    assert nearest or epochs == known.most_epochs or (epochs == 1 and epoch > known.seconds)


def test_a_faster_gpu_has_more_epochs() -> None:
    model = catalog.models()["smollm2-135m"]
    slow, fast = (demo.changed(on(device), model, flash=False)["num_epochs"] for device in (GPUS[1][0], H100))
    assert 1 <= slow < fast <= demo.facts().most_epochs


def test_what_a_person_asks_for_stays() -> None:
    seven = on(H100, "qwen7b-lora", ("num_epochs=2", "attn_implementation=flex_attention"))
    asked = demo.changed(seven, catalog.models()["qwen7b"], flash=False)
    assert asked == {"num_epochs": 2, "attn_implementation": "flex_attention"}
    assert "attn_implementation" not in demo.changed(on(H100), catalog.models()["smollm2-135m"], flash=True)


def test_on_a_gpu_the_recipe_gets_thousands_of_episodes_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path))
    longer = demo.on_gpu(on(H100))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("demo: 80gb/smollm2-135m-lora, by the GPU's memory (79.1 GiB); 4,000 episodes of six task")
    assert f"num_epochs={longer.settings['num_epochs']}: about" in line and "make demo RECIPE=" in line
    made = [orjson.loads(row) for row in longer.data.read_bytes().splitlines()]
    assert len(made) == demo.facts().episodes and longer.data.is_relative_to(tmp_path)
    assert {each["task"] for each in made} == {*facts().tasks}
    played = {room.introduction for room in episodes.unseen_rooms(200)}
    assert not episodes.introductions(made) & (played | episodes.introductions(trajectory.test_set()))
    assert trajectory.fault(made[0]) is None and trajectory.fault(made[-1]) is None
    assert schema.validate(longer) == []
    assert not [*recipe_checks.rates(longer, catalog.models()["smollm2-135m"])]


def test_without_a_gpu_and_with_other_data_nothing_changes(tmp_path: Path) -> None:
    here = recipe.open_recipe(NAME, "cpu")
    assert demo.on_gpu(here) is here
    own = recipe.open_recipe(NAME, "80gb", data=str(run_folder.ROOT / "data" / "test.jsonl"))
    assert demo.on_gpu(own) is own
