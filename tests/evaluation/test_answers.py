"""How near answers are to those of episodes: the figures by hand, the loss by transformers' own."""

import math
from pathlib import Path

import pytest

from tests.parts.players import expert
from tools import BadInput
from tools.core import chat_template, trajectory
from tools.evaluation import answers
from tools.evaluation.backends import Reply

TEST = [episode for episode, _ in zip(trajectory.test_set(), range(4), strict=False)]


def test_each_answer_is_asked_for_after_the_true_turns_before_it() -> None:
    found = answers.turns(TEST)
    assert len(found) == sum(turn["role"] == "assistant" for episode in TEST for turn in episode["messages"])
    assert found[1].before == TEST[0]["messages"][:4] and found[1].wanted == TEST[0]["messages"][4]["content"]


def test_a_turn_that_is_not_trained_is_not_asked_for() -> None:
    messages = [dict(turn) for turn in TEST[0]["messages"]]
    messages[2]["train"] = False  # type: ignore[assignment]
    assert len(answers.turns([{"messages": messages}])) == len(answers.turns(TEST[:1])) - 1
    with pytest.raises(BadInput, match="no answer that is trained"):
        answers.turns([{"messages": messages[:3]}])


def test_the_expert_s_answers_are_the_test_set_s() -> None:
    asked = answers.turns(TEST)
    said = answers.generated(expert(), asked, 1, "expert")
    found = answers.score(asked, said)
    assert found == pytest.approx({"turns": len(asked), "action": 100} | dict.fromkeys(FIGURES, 100))


FIGURES = ("bleu4", "rouge1", "rouge2", "rougeL")


def test_the_figures_by_hand() -> None:
    """Six of seven words in place: precisions 6/7, 5/6, 4/5, 3/4 of 1 to 4 words; ROUGE counts 6 and 5 of them."""
    asked = [answers.Turn([], "Action: go to fridge 1 now")]
    found = answers.score(asked, ["Action: go to fridge 1 soon"])
    assert found["action"] == 0
    assert found["bleu4"] == pytest.approx(100 * (6 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** 0.25)
    assert (found["rouge1"], found["rouge2"]) == pytest.approx((100 * 5 / 6, 100 * 4 / 5))
    other = answers.score(asked, ["Thought: it is the same.\nAction: go to fridge 1 now"])
    assert other["action"] == 100 and other["bleu4"] < 100


def test_answers_come_in_the_order_of_the_turns() -> None:
    asked = answers.turns(TEST)
    said = answers.generated(lambda messages, seed: Reply(str(len(messages)), 1, 0.0), asked, 4, "numbers")
    assert said == [str(len(turn.before)) for turn in asked]


@pytest.mark.heavy
def test_the_perplexity_is_that_of_the_answers_tokens(small_base: Path) -> None:
    """The mean loss that transformers itself computes where all but the answers is masked."""
    import torch

    from tools.parity import training_model

    model, tokenizer = training_model.load(small_base, None).float(), chat_template.tokenizer(small_base)
    ids: list[int] = []
    labels: list[int] = []
    for number, turn in enumerate(TEST[0]["messages"]):
        upto = answers.rendered(tokenizer, TEST[0]["messages"][: number + 1])
        prompt = answers.rendered(tokenizer, TEST[0]["messages"][:number], True) if number else []
        trained = turn["role"] == "assistant"
        labels += [-100] * ((len(prompt) if trained else len(upto)) - len(labels))
        labels += upto[len(labels) :]
        ids = upto
    with torch.inference_mode():
        loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
    found = answers.perplexity(model, tokenizer, TEST[:1], "small")
    assert found["tokens"] == sum(label != -100 for label in labels)
    assert found["perplexity"] == pytest.approx(math.exp(float(loss)), rel=1e-4)
