"""AgentInstruct's ShareGPT: each turn {"from", "loss", "value"}; `loss` is true where an answer is trained.

Read by sharegpt.py; the flag is a message's `train`, see masks.py.
"""

from typing import cast

from tools.data.formats import Episode, Message, Row, Turns, masks, sharegpt


def write(episode: Episode, with_calls: bool, turns: Turns | None) -> Row:
    """The object of an episode: ShareGPT with a flag in each turn. Raises CannotHold as ShareGPT does."""
    row = sharegpt.write(episode, with_calls, turns)
    shared = cast("list[Message]", row["conversations"])
    return row | {"conversations": [flagged(turn) for turn in shared]}


def flagged(turn: Message) -> Message:
    """The turn with its flag. A `train` that says what holds anyway stays beside it, to come back as it was."""
    answers = turn["from"] in ("gpt", "function_call")
    loss = bool(turn.get(masks.TRAIN, answers))
    told = loss != answers and list(turn)[-1] == masks.TRAIN
    rest = {key: value for key, value in turn.items() if not (told and key == masks.TRAIN)}
    head = {"from": rest.pop("from"), "loss": loss if answers or loss else None}
    return head | rest
