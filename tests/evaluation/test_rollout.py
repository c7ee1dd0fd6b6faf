"""Games that a model in training plays: the tokens are those that are served, the model's own alone carry gradient."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.parts.players import script
from tools.core import chat_template, trajectory
from tools.core.trajectory import Message
from tools.evaluation import expert, play, rollout
from tools.evaluation.backends import Chat, Reply
from tools.gguf import find_base
from tools.worlds.episode_task import Named, task_of
from tools.worlds.guard import WorldFailed

pytestmark = pytest.mark.heavy
ROOMS = [task_of(episode) for episode in islice(trajectory.read(trajectory.TRAIN_DATA), 3)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return chat_template.tokenizer(find_base.resolve("smollm2-135m"))


def in_tokens(chat: Chat, tokenizer: Any, letters: str = "") -> Chat:
    """A chat whose answers have tokens; one that holds `letters` is drawn letter by letter from there on."""

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    def ask(messages: list[Message], seed: int) -> Reply:
        reply = chat(messages, seed)
        whole, _, rest = reply.text.partition(letters) if letters else (reply.text, "", "")
        spelt = [each for letter in letters + rest for each in ids(letter)] if len(whole) < len(reply.text) else []
        written = [*ids(whole), *spelt, tokenizer.eos_token_id]
        read = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return reply._replace(read=list(read), written=written)

    return ask


def spans(made: rollout.Tokens, mark: int) -> Iterator[list[int]]:
    """The runs of tokens with this mark, after the first prompt."""
    run: list[int] = []
    for token, own in zip([*made.completion, 0], [*made.own, 1 - mark], strict=True):
        if own == mark:
            run.append(token)
        elif run:
            yield run
            run = []


def test_a_games_tokens_are_the_templates_and_the_models_answers_alone_are_its_own(tokenizer: Any) -> None:
    for named in ROOMS:
        game, replies = rollout.play_one(in_tokens(expert.chat(), tokenizer), named, 0)
        made = rollout.tokens(tokenizer, game.transcript, replies)
        whole = tokenizer.apply_chat_template(game.transcript, return_dict=False)
        assert whole[: len(made.prompt) + len(made.completion)] == made.prompt + made.completion
        assert tokenizer.decode(whole[len(made.prompt) + len(made.completion) :]).strip() == ""

        said = [turn["content"] for turn in game.transcript if turn["role"] == "assistant"]
        seen = [turn["content"] for turn in game.transcript[2:] if turn["role"] == "user"]
        assert [tokenizer.decode(run) for run in spans(made, 1)] == [f"{text}<|im_end|>" for text in said]
        assert all(text in tokenizer.decode(run) for text, run in zip(seen, spans(made, 0), strict=True))


def test_what_is_read_again_as_other_tokens_is_not_trained(tokenizer: Any) -> None:
    game, replies = rollout.play_one(in_tokens(expert.chat(), tokenizer, "Action: "), ROOMS[0], 0)
    made = rollout.tokens(tokenizer, game.transcript, replies)
    own = [tokenizer.decode(run) for run in spans(made, 1)]
    thoughts = [turn["content"].partition("Action:")[0] for turn in game.transcript if turn["role"] == "assistant"]
    assert own == thoughts
    whole = tokenizer.apply_chat_template(game.transcript, return_dict=False)
    assert whole[: len(made.prompt) + len(made.completion)] == made.prompt + made.completion


def test_a_game_without_an_answer_is_one_token_that_is_not_trained(tokenizer: Any) -> None:
    full = script("", ended="context")
    game, replies = rollout.play_one(full, ROOMS[0], 0)
    assert (game.end, replies) == ("context full", [])
    made = rollout.tokens(tokenizer, game.transcript, replies)
    assert made.prompt and made.completion == [tokenizer.eos_token_id] and made.own == [0]


def test_the_reward_is_what_the_world_says_and_none_where_it_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(messages: list[Message], seed: int) -> Reply:
        raise WorldFailed("my.py:3: it raised")

    players: list[Chat] = [expert.chat(), script("Thought: hm.\nAction: look"), script("Put it there."), fails]
    ends = [rollout.play_one(player, ROOMS[0], 0)[0].end for player in players]
    assert ends == ["won", "loop", "no action", "world failed"]
    assert rollout.won(ROOMS, [], ends) == [1.0, 0.0, 0.0, None]
    world = rollout.world_of("household").make()
    world.reset(ROOMS[0].task)
    for turn in rollout.play_one(expert.chat(), ROOMS[0], 0)[0].transcript[2:]:
        assert not world.won
        if turn["role"] == "assistant":
            world.step(trajectory.action(turn["content"]) or "")
    assert world.won


def one_of_two(prompts: Any, completions: Any, **_: Any) -> list[float | None]:
    """A reward that does not ask the world."""
    return [1.0, 0.0]


@pytest.fixture(scope="module")
def trainer(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TRL's trainer of a small random model that plays one room twice, one game of which is said to be won."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    args = GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("games")), use_cpu=True, bf16=False, report_to=[], num_generations=2,
        per_device_train_batch_size=2, max_completion_length=1024, temperature=1.0, max_steps=1,
    )  # fmt: skip
    return GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(small_base),
        one_of_two,
        args,
        Dataset.from_list([{"prompt": ROOMS[0]._asdict()}]),
        processing_class=chat_template.tokenizer(small_base),
        rollout_func=rollout.play,  # type: ignore[arg-type]
    )


def test_observations_carry_no_gradient(trainer: Any) -> None:
    """The gradient at each logit of TRL's own loss: none where the next token is the room's, some where it is own."""
    trainer.model.train()
    made = trainer._generate_and_score_completions([{"prompt": ROOMS[0]._asdict()} for _ in range(2)])
    kept = []

    def keep(_: Any, __: Any, logits: Any) -> None:
        logits.retain_grad()
        kept.append(logits)

    hook = trainer.model.get_output_embeddings().register_forward_hook(keep)
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, made).backward()
    hook.remove()
    own = made["tool_mask"].bool() & made["completion_mask"].bool()
    assert 0 < own.sum() < made["completion_mask"].sum()
    felt = kept[0].grad[:, :-1].abs().sum(-1) > 0  # the logits before each token of the completion
    assert felt.equal(own)


def test_games_of_a_model_are_those_of_an_evaluation(trainer: Any) -> None:
    """Same tokens for the same step; the tokens read are those of the room's conversation in the chat template."""
    prompts = [ROOMS[1]._asdict()]
    one, other = rollout.play(prompts, trainer), rollout.play(prompts, trainer)
    assert one == other
    assert trainer.model.training
    tokenizer, world = trainer.processing_class, rollout.world_of("household").make()
    shown = world.reset(ROOMS[1].task)
    turns = [{"role": "system", "content": world.system_prompt}, {"role": "user", "content": shown}]
    assert one["prompt_ids"] == [tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)]


def test_games_that_a_world_fails_all_of_stop_the_training(trainer: Any, tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(
        "class Mine:\n    system_prompt, nothing, won, done = 'Act.', '', False, False\n"
        "    def tasks(self, split): return []\n    def reset(self, task): raise ValueError('no room')\n"
        "    def step(self, action): return ''\n"
    )
    named = Named(f"{tmp_path / 'my.py'}:Mine", "one", "", "")
    with pytest.raises(play.Failed, match=r"every game failed, the first by world failed, one: .*no room"):
        rollout.play([named._asdict()], trainer)
