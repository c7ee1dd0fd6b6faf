"""The household as a world: tasks that are equal everywhere, in rooms that training has or has not."""

import random
from collections import Counter
from itertools import islice

import pytest

from tools import BadInput
from tools.core import trajectory
from tools.worlds.household import episodes
from tools.worlds.household.environment import Household
from tools.worlds.household.expert import Expert
from tools.worlds.household.facts import facts
from tools.worlds.world import Task, World


def layout(introduction: str) -> frozenset[str]:
    """The set of receptacles that a first observation names."""
    return frozenset(Expert(introduction, random.Random(0)).receptacles)


def layouts(world: World, split: str, count: int) -> set[frozenset[str]]:
    return {layout(world.reset(task)) for task in islice(world.tasks(split), count)}


def expert_wins(world: Household, task: Task) -> bool:
    observation = world.reset(task)
    expert = Expert(observation, random.Random(0))
    for _ in range(world.steps):
        observation = world.step(expert.act(observation)[1])
        if world.done:
            return world.won
    return False


@pytest.mark.parametrize("split", ["train", "seen", "unseen"])
@pytest.mark.parametrize("families", ["", "all", "look,two", "heat", "large"])
def test_the_expert_wins_the_tasks_of_each_split_and_their_ids_are_their_own(families: str, split: str) -> None:
    world = Household(families)
    tasks = list(islice(world.tasks(split), 60))
    assert tasks == list(islice(Household(families).tasks(split), 60))
    assert len({task.id for task in tasks}) == 60 == len({world.reset(task) for task in tasks})
    assert all(expert_wins(Household(families), task) for task in tasks)
    assert {task.kind for task in tasks} == set(world.families)


def test_by_default_it_plays_the_families_and_the_words_of_the_committed_episodes() -> None:
    world = Household()
    assert set(world.families) == set(facts().committed.tasks)
    assert world.system_prompt == trajectory.system_prompt()
    assert "use O" in Household("all").system_prompt
    heat = [task for task in islice(world.tasks("unseen"), 100) if task.kind == "heat"]
    assert list(islice(Household("heat").tasks("unseen"), len(heat))) == heat


def test_no_set_of_receptacles_stands_in_training_and_in_evaluation() -> None:
    trained = {layout(said) for said in episodes.introductions(episodes.train_episodes())}
    kept = {layout(said) for said in episodes.introductions(episodes.test_episodes())}
    for families in ("", "all", "large"):
        kept |= layouts(Household(families), "unseen", 300)
        trained |= layouts(Household(families), "train", 300)
    trained |= {
        layout(room.introduction)
        for room in islice(episodes.drawn_rooms(1, list(facts().tasks), list(facts().rooms)), 300)
    }
    trained |= {layout(said) for said in episodes.introductions(episodes.demo_episodes(300, 300))}
    assert len(trained) > 500 and len(kept) > 200
    assert not trained & kept


def test_large_kitchens_are_as_full_as_alfworlds() -> None:
    world = Household("large")
    assert world.system_prompt == Household().system_prompt and world.families == Household().families
    assert world.steps == 50
    told = [layout(world.reset(task)) for task in islice(world.tasks("unseen"), 100)]
    sizes = sorted(map(len, told))
    assert sizes[0] >= 12 and sizes[50] >= 22 and sizes[-1] > 35
    assert all({"toaster 1", "stoveburner 4", "fridge 1"} <= names for names in told)
    assert any("cabinet 20" in names for names in told)


def test_seen_tasks_are_new_ones_among_the_receptacles_of_training() -> None:
    world, trained = Household(), episodes.introductions(episodes.train_episodes())
    tasks = list(islice(world.tasks("seen"), 200))
    assert layouts(world, "seen", 200) <= {layout(said) for said in trained}
    assert not {world.reset(task) for task in tasks} & trained
    assert min(Counter(task.kind for task in tasks).values()) > 20


def test_what_it_cannot_play_is_said() -> None:
    with pytest.raises(BadInput, match="juggle: not among the household's tasks: put, look"):
        Household("juggle")
    with pytest.raises(BadInput, match="test: the household's splits are train, seen, unseen"):
        next(Household().tasks("test"))
    for name in ("household-x", "kitchen-1", "household-unseen-heat-bathroom-1"):
        with pytest.raises(BadInput, match=f"{name}: not a task of the household"):
            Household().reset(Task(name, "heat", ""))
