"""Training on games that the model plays: what is wrong with rooms is found first, and two updates give an adapter."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from tools import BadInput
from tools.core import catalog, trajectory
from tools.gguf import find_base
from tools.recipes import commands, index, plan, recipe, schema
from tools.recipes.recipe import Recipe
from tools.training import preflight, recipe_checks, run_axolotl

NAME = "smollm2-135m-grpo"
# A world in which a model that was not tuned wins some games and loses others, in one answer each.
COIN = """
class Coin:
    system_prompt = "You always answer with one line, which is Action: heads or Action: tails. You say nothing else."
    nothing, won, done = "", False, True

    def tasks(self, split):
        return []

    def reset(self, task):
        self.won = False
        return "A coin was thrown. Answer with one line, Action: heads or Action: tails. Which one is it?"

    def step(self, action):
        self.won = action.lower().startswith(("heads", "'heads", "h"))
        return ""
"""


def write(path: Path, rows: list[Any]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in rows))
    return path


def rooms(count: int) -> list[Any]:
    return list(trajectory.read(trajectory.TRAIN_DATA))[:count]


def asked(folder: Path, rows: list[Any], *changes: str) -> Recipe:
    """The committed recipe for the CPU with data of its own."""
    return commands.open_asked(NAME, "cpu", "", 0, "", list(changes), 0, str(write(folder / "rooms.jsonl", rows)))


def test_axolotl_accepts_each_recipe_for_games_and_nothing_is_wrong_with_it() -> None:
    for path in sorted(recipe.RECIPES.glob("*/*-grpo.yaml")):
        made = recipe.read_recipe(path)
        assert schema.validate(made) == []
        assert list(recipe_checks.findings(made, catalog.model_of(made.base))) == []
        assert (path.parent / path.name.replace("grpo", "lora")).exists(), "it begins with what that one trains"


def test_recipes_are_for_one_device_and_small_models_and_say_that_they_are_experimental() -> None:
    made = {(path.parent.name, path.stem.removesuffix("-grpo")) for path in recipe.RECIPES.glob("*/*-grpo.yaml")}
    assert {"cpu", "6gb", "24gb"} <= {tier for tier, _ in made}
    assert all(catalog.tiers()[tier].world == 1 for tier, _ in made)
    assert {model for _, model in made} == set(catalog.methods()["grpo"].models)
    assert "# Status    experimental" in (recipe.RECIPES / "24gb" / "qwen0.5b-grpo.yaml").read_text()


def test_an_update_has_whole_groups_and_as_many_tokens_as_the_methods() -> None:
    method = catalog.methods()["grpo"]
    for tier in (each for each in catalog.tiers().values() if each.gpu and each.world == 1):
        found = plan.choose(catalog.models()["smollm2-135m"], method, tier)
        assert found and found.rows % method.group == 0
        assert method.update_tokens <= found.update_tokens <= plan.MOST_TOKENS * method.update_tokens
        # It is planned anew from what the recipe says.
        made = recipe.open_recipe(NAME, tier.key)
        assert plan.of(found.model, tier, plan.from_recipe(made.settings, tier)).parts == found.parts


def test_games_take_their_keys_and_values_where_training_takes_less() -> None:
    tier, model = catalog.tiers()["12gb"], catalog.models()["smollm2-1.7b"]
    found = plan.choose(model, catalog.methods()["grpo"], tier)
    assert found and found.parts["games"] > 0
    read = plan.of(model, tier, replace(found.settings, group=0))
    assert "games" not in read.parts


def test_several_devices_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"smollm2-135m-grpo.yaml:\d+: rl: grpo: its games are played on one device"):
        run_axolotl.spread(asked(tmp_path, rooms(1)), 2)


@pytest.mark.heavy
def test_rooms_are_counted_and_their_lengths_told(tmp_path: Path) -> None:
    found = preflight.check(asked(tmp_path, rooms(3), "sequence_len=512"), find_base.resolve("smollm2-135m"))
    assert (found.what, found.episodes, found.trained) == ("rooms", 3, 0)
    assert found.longest > 512
    told = [each.what for each in found.findings]
    assert any("of the episodes are longer than sequence_len, 512: a game as long as those is lost" in t for t in told)
    assert "too few updates to learn from: 3 in the whole run, of 3 rooms" in told


@pytest.mark.heavy
def test_an_episode_that_no_world_begins_with_is_told_by_its_line(tmp_path: Path) -> None:
    base = find_base.resolve("smollm2-135m")
    other = rooms(2)
    other[1]["messages"][1]["content"] += " Hurry."
    with pytest.raises(BadInput, match=r"rooms.jsonl:2: household-\d+: household does not begin as this episode does"):
        preflight.check(asked(tmp_path, other), base)
    other = rooms(1)
    other[0]["id"] = "trip-7"
    with pytest.raises(BadInput, match=r"rooms.jsonl:1: trip-7: not a task of the household; rl: grpo plays the rooms"):
        preflight.check(asked(tmp_path, other), base)
    other[0]["provenance"] = {"world": "atlantis", "task": "one"}
    with pytest.raises(BadInput, match=r"rooms.jsonl:1: atlantis: no such world"):
        preflight.check(asked(tmp_path, other), base)


def test_games_that_another_function_plays_are_axolotls_own_affair(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r":\d+: rl: grpo: nothing here checks its data; `axolotl train` takes"):
        preflight.read(asked(tmp_path, rooms(1), "trl={num_generations: 8, rollout_func: my.play}"))


@pytest.mark.parametrize("said", ["trl=5", "trl={num_generations: many}", "trl={num_generations: 0}"])
def test_a_group_that_cannot_be_counted_is_refused(said: str) -> None:
    with pytest.raises(BadInput, match="trl: .*is (no mapping|not a whole number of at least 1)"):
        recipe.open_recipe(NAME, "cpu", pairs=[said])


def test_no_recipe_is_planned_for_several_devices() -> None:
    model, method, two = catalog.models()["qwen0.5b"], catalog.methods()["grpo"], catalog.tiers()["2x24gb"]
    assert plan.choose(model, method, two) is None
    assert index.impossible(model, method, two, 2048) == "games are played on one device"
