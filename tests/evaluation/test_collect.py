"""What games teach: won ones as episodes, lost ones with a won twin as pairs, and what a teacher may cost."""

from itertools import islice
from typing import Any

import pytest

from tests.parts.players import TASKS, expert, script
from tools.evaluation import collect
from tools.evaluation import expert as its_expert
from tools.evaluation.backends import Reply
from tools.evaluation.play import Game, play_game, play_games
from tools.worlds.household.environment import Household

ABOUT = {"model": "a teacher", "temperature": 0.7}
WORLD = Household()


def then(place: int, text: str) -> Any:
    """The expert, but for its answer at this place, from 0, and all after it."""
    right = expert()

    def chat(messages: list[dict[str, str]], seed: int) -> Reply:
        return Reply(text, 5, 0.1) if len(messages) // 2 > place else right(messages, seed)

    return chat


def played(chat: Any, attempt: int = 0) -> Game:
    return play_game(chat, Household(), TASKS[0], attempt=attempt)


def test_a_won_game_is_an_episode_of_training_with_where_it_is_from() -> None:
    game = played(expert())
    (episode,) = collect.episodes([game, played(script("Action: look"), 1)], WORLD, ABOUT)
    assert episode["messages"] == game.transcript
    made = {**ABOUT, "task": TASKS[0].id, "goal": TASKS[0].goal}
    assert (episode["id"], episode["provenance"]) == (f"{TASKS[0].id}-0", made)


def test_games_that_are_alike_are_one_episode() -> None:
    assert len(collect.episodes([played(expert()), played(expert(), 1)], WORLD, ABOUT)) == 1


def test_what_the_teacher_was_told_beside_the_worlds_prompt_is_no_part_of_an_episode() -> None:
    game = played(expert())
    game.transcript[0] = {"role": "system", "content": f"{WORLD.system_prompt}\n\nAnswer in two lines."}
    (episode,) = collect.episodes([game], WORLD, ABOUT)
    assert episode["messages"][0]["content"] == WORLD.system_prompt


def test_an_answer_that_did_nothing_stays_and_is_not_trained() -> None:
    games = play_games(its_expert.chat(slip=0.3), Household, list(islice(Household().tasks("train"), 6)))
    slipped = [game for game in games if game.won and game.invalid]
    assert slipped
    for game, episode in zip(slipped, collect.episodes(slipped, WORLD, ABOUT), strict=True):
        untrained = [place for place, turn in enumerate(episode["messages"]) if turn.get("train") is False]
        assert len(untrained) == game.invalid
        assert all(WORLD.nothing in game.transcript[place + 1]["content"] for place in untrained)


def test_a_game_in_another_form_than_trainings_is_left_out() -> None:
    game = played(expert())
    game.strict -= 1
    assert not collect.episodes([game], WORLD, ABOUT)


def test_a_lost_game_with_a_won_twin_is_a_pair_where_their_actions_part() -> None:
    won, lost = played(expert()), played(then(2, "Thought: Hm.\nAction: look"), 1)
    (pair,) = collect.pairs([lost, won], WORLD, ABOUT)
    assert pair["prompt"] == won.transcript[:6]
    assert (pair["chosen"], pair["rejected"]) == (
        [won.transcript[6]],
        [{"role": "assistant", "content": "Thought: Hm.\nAction: look"}],
    )


def test_other_thoughts_beside_the_same_action_are_no_parting() -> None:
    won, lost = played(expert()), played(then(2, "Action: look"), 1)
    lost.transcript[2] = lost.transcript[2] | {
        "content": "Thought: Other.\n" + lost.transcript[2]["content"].split("\n")[-1]
    }
    (pair,) = collect.pairs([won, lost], WORLD, ABOUT)
    assert pair["prompt"] == won.transcript[:6]


@pytest.mark.parametrize("kept", [[0], [1]])
def test_without_a_twin_there_is_no_pair(kept: list[int]) -> None:
    games = [played(expert()), played(then(1, "Action: look"), 1)]
    assert not collect.pairs([games[each] for each in kept], WORLD, ABOUT)


def test_a_game_that_the_server_failed_in_is_no_lost_one() -> None:
    won, lost = played(expert()), played(then(1, "Action: look"), 1)
    lost.end = "server failed"
    assert not collect.pairs([won, lost], WORLD, ABOUT)


def test_the_expert_is_a_teacher_that_needs_no_memory_and_wins() -> None:
    tasks = list(islice(Household().tasks("train"), 6))
    games = play_games(its_expert.chat(), Household, tasks)
    assert all(game.won for game in games)
    slipping = play_games(its_expert.chat(0.3), Household, tasks)
    assert sum(game.invalid for game in slipping) > 0


def test_a_meter_counts_and_stops_before_the_answer_that_is_over_the_budget() -> None:
    meter = collect.Meter((1.0, 2.0), budget=25e-6)
    chat = meter.metered(lambda messages, seed: Reply("", 2, 0.0, "stop", 6))
    for _ in range(3):
        chat([], 0)
    assert (meter.read, meter.generated) == (18, 6) and meter.cost == pytest.approx(30e-6)
    with pytest.raises(collect.OverBudget, match="2.5e-05 dollars"):
        chat([], 0)
