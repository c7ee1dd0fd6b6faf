"""AgentInstruct's ShareGPT: each turn {"from", "loss", "value"}; `loss` is true where an answer is trained.

Read by sharegpt.py, which knows the flag; OpenAI's name for it is `weight`, 0 or 1.
"""

from typing import cast

from tools.data.formats import CannotHold, Episode, Message, Row, Turns, sharegpt


def write(episode: Episode, with_calls: bool, turns: Turns | None) -> Row:
    """The object of an episode: ShareGPT with a flag in each turn. Raises CannotHold as ShareGPT does."""
    row = sharegpt.write(episode, with_calls, turns)
    shared = cast("list[Message]", row["conversations"])
    return row | {"conversations": [flagged(turn, number) for number, turn in enumerate(shared, 1)]}


def flagged(turn: Message, number: int) -> Message:
    """The turn with its flag. A weight that says what holds anyway stays beside it, to come back as it was.

    Raises CannotHold for a weight between 0 and 1.
    """
    answers = turn["from"] in ("gpt", "function_call")
    loss = turn.get("weight", answers)
    if loss not in (0, 1, True, False):
        raise CannotHold(f"message {number} has the weight {loss!r}; `loss` is true or false")
    told = bool(loss) != answers and type(loss) is int and list(turn)[-1] == "weight"
    rest = {key: value for key, value in turn.items() if not (told and key == "weight")}
    head = {"from": rest.pop("from"), "loss": bool(loss) if answers or loss else None}
    return head | rest
