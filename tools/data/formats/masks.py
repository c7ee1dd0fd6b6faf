"""Which turns are trained: a message's `train`, true or false, as Axolotl reads it (message_field_training: train).

Read as well: OpenAI's `weight`, 0 or 1, and `loss` of AgentInstruct and ms-swift. Without any, answers are trained and
nothing else is.
"""

from tools import BadInput
from tools.data.formats import CannotHold, Message

TRAIN = "train"
FLAGS = ("weight", "loss", TRAIN)


def by_default(turn: Message) -> bool:
    """Whether a turn is trained that does not say so: an answer is."""
    return turn.get("role") == "assistant"


def with_train(turn: Message, number: int) -> Message:
    """The message with its flag as `train`, where that says more than its role does; itself where it has it so.

    Raises BadInput for a flag that is neither true nor false, such as a weight of 0.5, and for two that differ.
    """
    said = {key: turn[key] for key in FLAGS if turn.get(key) is not None}
    if not said or (len(said) == 1 and type(said.get(TRAIN)) is bool):
        return turn
    for key, value in said.items():
        if value not in (0, 1):
            why = f"message {number} has the {key} {value!r}; a turn is trained or not: true or false, 1 or 0"
            raise BadInput(f"{why} (no trainer takes a share)" if type(value) is float else why)
    if len({bool(value) for value in said.values()}) > 1:
        raise BadInput(f"message {number} has {' and '.join(said)}, which differ; keep one of them")
    rest = {key: value for key, value in turn.items() if key not in FLAGS or key == TRAIN}
    trained = any(said.values())
    return rest | {TRAIN: trained} if TRAIN in said or trained != by_default(turn) else rest


def refuse_flags(messages: list[Message], target: str) -> None:
    """Raise CannotHold for a flag that says more than a turn's role, which `target`, a trainer, does not know."""
    for number, turn in enumerate(messages, 1):
        trained = turn.get(TRAIN)
        if trained is not None and trained != by_default(turn):
            how = f"message {number} ({turn['role']}) has train: {str(trained).lower()}"
            raise CannotHold(f"{how}, and {target} trains every answer and nothing else")
