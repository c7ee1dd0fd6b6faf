"""What games come to: rates with intervals, how they ended, and two models on the same tasks."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from math import comb
from typing import NotRequired, TypedDict

from tools.core import trajectory
from tools.evaluation.play import Game, Played


class Tally(TypedDict):
    """Games won of those played; "rooms" counts games, "tasks" how many of them are of different tasks, if not all."""

    won: int
    rooms: int
    tasks: NotRequired[int]


class Agreement(TypedDict):
    """First actions that were the expert's, of those games whose task it can read."""

    same: int
    games: int


class Summary(Tally):
    """What games came to; see `summary`."""

    rate: float
    wilson95: list[float]
    by_task: dict[str, Tally]
    ends: dict[str, int]
    faults: dict[str, int]
    answers: int
    strict: int
    lenient: int
    invalid: int
    mean_steps: float
    mean_steps_won: float | None
    first_step: Agreement | None
    pass_at: dict[str, float]
    pass_all: dict[str, float]
    tokens_per_second: float
    seconds: float


def summary(games: Sequence[Game], expert: Callable[[str], str | None] | None = None) -> Summary:
    """What games came to.

    `wilson95`: the interval of `rate`; several games of a task count as one for it, since they are not independent.
    `ends`: games by how they ended; `faults`: answers by what was wrong with them; `answers`: all answers; `strict` and
    `lenient`: those in which each parser read an action; `invalid`: those that did nothing. `pass_at` and `pass_all`:
    see `pass_at_k` and `pass_all_k`, by k; empty where each task was played once. `first_step`: how often the first
    action was the one of `expert`, which takes the first observation. `seconds`: the time that all games took together;
    `tokens_per_second` counts generated tokens over it.
    """
    won = sum(game.won for game in games)
    tasks = {game.id for game in games}
    seconds = sum(game.wall for game in games)
    by_task: dict[str, Tally] = {}
    for task in sorted({game.task for game in games}):
        played = [game for game in games if game.task == task]
        count = len({game.id for game in played})
        by_task[task] = {"won": sum(game.won for game in played), "rooms": len(played), "tasks": count}
    attempts = Counter(game.id for game in games)
    wins = [sum(game.won for game in games if game.id == task) for task in tasks]
    most = min(attempts.values())
    ks = [] if most == 1 else [k for k in (1, 2, 4, 8, 16, 32, 64) if k < most] + [most]
    faults: Counter[str] = Counter()
    for game in games:
        faults.update(game.faults)
    steps_won = [game.steps for game in games if game.won]
    return {
        "won": won,
        "rooms": len(games),
        "tasks": len(tasks),
        "rate": won / len(games),
        "wilson95": interval({"won": won, "rooms": len(games), "tasks": len(tasks)}),
        "by_task": by_task,
        "ends": dict(Counter(game.end for game in games).most_common()),
        "faults": dict(faults.most_common()),
        "answers": sum(game.steps for game in games),
        "strict": sum(game.strict for game in games),
        "lenient": sum(game.lenient for game in games),
        "invalid": sum(game.invalid for game in games),
        "mean_steps": sum(game.steps for game in games) / len(games),
        "mean_steps_won": sum(steps_won) / len(steps_won) if steps_won else None,
        "first_step": agreement(games, expert) if expert else None,
        "pass_at": {str(k): mean([pass_at_k(most, each, k) for each in wins]) for k in ks},
        "pass_all": {str(k): mean([pass_all_k(most, each, k) for each in wins]) for k in ks},
        "tokens_per_second": sum(game.tokens for game in games) / seconds if seconds else 0.0,
        "seconds": round(seconds, 1),
    }


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def agreement(games: Sequence[Game], expert: Callable[[str], str | None]) -> Agreement | None:
    """How often the first action was the expert's; None where it can read none of the tasks."""
    pairs = []
    for game in games:
        if len(game.transcript) > 2 and (wanted := expert(game.transcript[1]["content"])):
            pairs.append(trajectory.action(game.transcript[2]["content"]) == wanted)
    return {"same": sum(pairs), "games": len(pairs)} if pairs else None


def interval(played: Tally) -> list[float]:
    """The 95 % interval of a rate; several games of a task count as one, since they are not independent."""
    tasks = played.get("tasks", played["rooms"])
    return wilson(played["won"] * tasks / played["rooms"], tasks)


def wilson(won: float, rooms: int) -> list[float]:
    """The 95 % score interval [low, high] of a success rate; it holds for few rooms and for rates near 0 and 1.

    E. B. Wilson (1927), Probable inference, the law of succession, and statistical inference, Journal of the American
    Statistical Association 22, 209-212.
    """
    z = 1.959964  # The normal distribution's 97.5 % quantile.
    rate = won / rooms
    middle = rate + z**2 / (2 * rooms)
    reach = z * (rate * (1 - rate) / rooms + z**2 / (4 * rooms**2)) ** 0.5
    return [max(0.0, (middle - reach) / (1 + z**2 / rooms)), min(1.0, (middle + reach) / (1 + z**2 / rooms))]


def mcnemar(first_alone: int, second_alone: int) -> float:
    """The two-sided p-value of McNemar's exact test: tasks that one of two models won and the other did not.

    Under the hypothesis that both are as good, such a task falls to either with probability 1/2: the binomial tail of
    the smaller count, doubled. Q. McNemar (1947), Note on the sampling error of the difference between correlated
    proportions or percentages, Psychometrika 12, 153-157; exact as in B. S. Everitt (1977), The analysis of
    contingency tables, 2.6.
    """
    parted, fewer = first_alone + second_alone, min(first_alone, second_alone)
    return min(1.0, 2 * sum(comb(parted, each) for each in range(fewer + 1)) / 2**parted)


def pass_at_k(games: int, won: int, k: int) -> float:
    """The chance that one at least of k games of a task is won, estimated without bias from more of them.

    1 - C(n - c, k) / C(n, k). M. Chen et al. (2021), Evaluating large language models trained on code,
    arXiv:2107.03374, equation 1.
    """
    return 1 - comb(games - won, k) / comb(games, k)


def pass_all_k(games: int, won: int, k: int) -> float:
    """The chance that all of k games of a task are won (pass^k), estimated without bias from more of them.

    C(c, k) / C(n, k). S. Yao et al. (2024), tau-bench, arXiv:2406.12045, section 4.
    """
    return comb(won, k) / comb(games, k)


class Setup(TypedDict):
    """Of what an evaluation is: games of two with the same `tasks_sha256` may be compared.

    `player`: "base", "tuned" or "served" (whatever answers at an address). `model`: its name. `weights_sha256`: of the
    GGUF, or of what transformers loads; "" behind an address. `quant`: "" where it is not known. `prompt`: "trained",
    "zero-shot" or "few-shot" with so many `shots`. `repeat`: games of each task.
    """

    player: str
    model: str
    quant: str
    backend: str
    prompt: str
    shots: int
    parse: str
    temperature: float
    repeat: int
    world: str
    split: str
    tasks_sha256: str
    weights_sha256: str


class Classic(TypedDict):
    """The first prompt that people try, and the answer."""

    prompt: str
    answer: str


class Evaluation(Setup):
    """eval-*.json: what a player did, when (`date`, UTC), and all its games."""

    date: str
    summary: Summary
    classic: Classic
    games: list[Played]


def label(each: Setup) -> str:
    """What tells an evaluation from others: "base Q8_0 few-shot", with what is not as usual."""
    words = [each["player"] if each["player"] != "served" else each["model"], each["quant"]]
    words += [each["prompt"]] if each["prompt"] != "trained" else []
    words += [each["backend"]] if each["backend"] == "transformers" else []
    words += [each["parse"]] if each["parse"] != "strict" else []
    words += [f"T={each['temperature']:g}"] if each["temperature"] else []
    return " ".join(filter(None, words))


class Pair(TypedDict):
    """One task as two models played it: whether each won it, and how its game ended."""

    id: str
    task: str
    goal: str
    a: bool
    b: bool
    a_end: str
    b_end: str


class Comparison(TypedDict):
    """Two evaluations on the same tasks: tasks won by both, by one alone, by none; `p`: McNemar's, see `mcnemar`.

    `parted`: the tasks that one alone won.
    """

    a: str
    b: str
    tasks: int
    both: int
    a_alone: int
    b_alone: int
    neither: int
    p: float
    by_task: dict[str, list[Tally]]
    parted: list[Pair]


def compare(a: Evaluation, b: Evaluation) -> Comparison:
    """Two evaluations on the same tasks, by the first game of each task."""
    others = {game["id"]: game for game in b["games"] if not game["attempt"]}
    pairs: list[Pair] = []
    for game in a["games"]:
        if not game["attempt"]:
            other = others[game["id"]]
            about = {key: game[key] for key in ("id", "task", "goal")}  # type: ignore[literal-required]
            ends = {"a": game["won"], "b": other["won"], "a_end": game["end"], "b_end": other["end"]}
            pairs.append({**about, **ends})  # type: ignore[typeddict-item]
    by_task: dict[str, list[Tally]] = defaultdict(list)
    for task in sorted({each["task"] for each in pairs}):
        of = [each for each in pairs if each["task"] == task]
        by_task[task] = [{"won": sum(each[side] for each in of), "rooms": len(of)} for side in ("a", "b")]  # type: ignore[literal-required]
    kinds = Counter((each["a"], each["b"]) for each in pairs)
    return {
        "a": label(a),
        "b": label(b),
        "tasks": len(pairs),
        "both": kinds[True, True],
        "a_alone": kinds[True, False],
        "b_alone": kinds[False, True],
        "neither": kinds[False, False],
        "p": mcnemar(kinds[True, False], kinds[False, True]),
        "by_task": dict(by_task),
        "parted": [each for each in pairs if each["a"] != each["b"]],
    }
