"""What games come to, against worked examples and other implementations."""

import itertools
import random

import pytest
from scipy.stats import binomtest

from tests.parts.players import TASKS, all_played, expert, played, script
from tools.evaluation import expert as experts
from tools.evaluation import scores
from tools.evaluation.play import Game


@pytest.mark.parametrize(("won", "rooms"), [(0, 8), (1, 10), (26, 48), (120, 200), (48, 48)])
def test_the_interval_is_wilson_s(won: int, rooms: int) -> None:
    """Its ends are the rates p with |won / rooms - p| = z sqrt(p (1 - p) / rooms); scipy has the same."""
    low, high = scores.wilson(won, rooms)
    assert 0 <= low <= won / rooms <= high <= 1
    for end in (low, high):
        assert abs(won / rooms - end) == pytest.approx(1.959964 * (end * (1 - end) / rooms) ** 0.5, abs=1e-9)
    wanted = binomtest(won, rooms).proportion_ci(0.95, "wilson")
    assert (low, high) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (0, 5), (3, 9), (9, 3), (12, 12), (40, 71)])
def test_mcnemar_s_test_is_the_binomial_one(first: int, second: int) -> None:
    wanted = binomtest(first, first + second).pvalue if first + second else 1.0
    assert scores.mcnemar(first, second) == pytest.approx(wanted)


def test_mcnemar_s_test_by_hand() -> None:
    """Of six tasks that part, one is the first's: 2 (1 + 6) / 64."""
    assert scores.mcnemar(1, 5) == pytest.approx(14 / 64)


@pytest.mark.parametrize(("games", "won"), [(5, 0), (5, 2), (5, 5), (4, 1)])
def test_pass_at_k_counts_every_choice_of_k_games(games: int, won: int) -> None:
    """The estimates are the shares of all sets of k games in which one is won, and in which all are."""
    outcomes = [True] * won + [False] * (games - won)
    for k in range(1, games + 1):
        sets = list(itertools.combinations(outcomes, k))
        assert scores.pass_at_k(games, won, k) == pytest.approx(sum(map(any, sets)) / len(sets))
        assert scores.pass_all_k(games, won, k) == pytest.approx(sum(map(all, sets)) / len(sets))


def test_pass_at_k_by_hand() -> None:
    """10 games, 3 won: pass@5 = 1 - C(7,5)/C(10,5) = 1 - 21/252; pass^2 = C(3,2)/C(10,2) = 3/45."""
    assert scores.pass_at_k(10, 3, 5) == pytest.approx(1 - 21 / 252)
    assert scores.pass_all_k(10, 3, 2) == pytest.approx(3 / 45)


def test_the_summary_adds_up() -> None:
    games = [played(expert() if index % 2 else script(""), task) for index, task in enumerate(TASKS)]
    for game in games:
        game.wall = 0.25
    found = scores.summary(games, experts.first_action)
    assert (found["won"], found["rooms"], found["rate"]) == (4, 8, 0.5)
    assert found["wilson95"] == scores.wilson(4, 8)
    assert found["invalid"] == 16 and found["faults"] == {"no action": 16}
    assert found["ends"] == {"no action": 4, "won": 4}
    assert sum(each["rooms"] for each in found["by_task"].values()) == 8
    assert sum(each["won"] for each in found["by_task"].values()) == 4
    assert found["answers"] == sum(game.steps for game in games)
    assert found["strict"] == found["lenient"] == found["answers"] - 16
    assert found["mean_steps"] == found["answers"] / 8
    assert found["mean_steps_won"] == (found["answers"] - 16) / 4
    assert found["first_step"] == {"same": 4, "games": 8}
    assert not found["pass_at"] and not found["pass_all"]
    assert found["tokens_per_second"] == sum(game.tokens for game in games) / 2.0
    assert found["seconds"] == 2.0


def test_games_of_one_task_are_not_independent() -> None:
    """Ten games of each of two tasks, one always won: the interval is that of one in two."""
    games = [Game(name, "put", name, attempt, won=name == "a") for name in "ab" for attempt in range(10)]
    found = scores.summary(games)
    assert found["wilson95"] == scores.wilson(1, 2) == scores.interval(found["by_task"]["put"])
    assert found["pass_at"] == dict.fromkeys(("1", "2", "4", "8", "10"), 0.5) == found["pass_all"]


def test_the_expert_agrees_with_itself_and_reads_no_other_world() -> None:
    games = all_played(expert())
    assert scores.agreement(games, experts.first_action) == {"same": len(TASKS), "games": len(TASKS)}
    for game in games:
        game.transcript[1]["content"] = "You see a door. What now?"
    assert scores.agreement(games, experts.first_action) is None


def test_random_wins_are_as_likely_as_the_interval_says() -> None:
    """Of many draws at a known rate, about 95 % have it within the interval."""
    draw = random.Random(0)
    held = 0
    for _ in range(1000):
        low, high = scores.wilson(sum(draw.random() < 0.7 for _ in range(48)), 48)
        held += low <= 0.7 <= high
    assert 930 <= held <= 970
