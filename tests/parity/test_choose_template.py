"""A model on trial: the template that is right here, and answers that end by their token."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tests.serving.test_ollama_templates import (
    ASSISTANT,
    FAMILIES,
    LLAMAS,
    OBSERVATION,
    SYSTEM,
    USER,
    Family,
    jinja,
    model,
)
from tools import Failed
from tools.parity import choose_template
from tools.serving import ollama

pytestmark = pytest.mark.heavy

EPISODE = [SYSTEM, USER, ASSISTANT, OBSERVATION, ASSISTANT]
BY_NAME = {family.name: family for family in FAMILIES} | {family.template: family for family in LLAMAS}


def tokenizer_of(family: Family) -> Any:
    """A tokenizer with a family's chat template, and no vocabulary."""
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token=family.eos)
    if family.bos:
        tokenizer.bos_token = family.bos
    tokenizer.chat_template = jinja(family)
    return tokenizer


def spec_of(gguf: Path, family: str | None) -> ollama.Spec:
    return ollama.Spec("react-trial", gguf, "none", "0", "none", {"num_ctx": 2048}, family, "Be brief.")


@pytest.mark.parametrize(
    ("real", "said", "chosen", "right"),
    [
        ("gemma", "gemma", "gemma", True),
        ("qwen2.5", "phi4", "phi4", True),  # Ollama prefers the one in the GGUF by itself, since it tells of tools.
        ("llama3", "llama3", "llama3", True),
        ("gemma", "chatml", None, True),
        # Neither: llama-server gives the one in the GGUF today's date.
        ("meta-llama-Llama-3.1-8B-Instruct", "chatml", "chatml", False),
    ],
)
def test_the_template_whose_prompts_are_right_is_taken(
    session: ollama.Session, tmp_path: Path, real: str, said: str, chosen: str | None, right: bool
) -> None:
    family = BY_NAME[real]
    gguf, tokenizer = model(tmp_path / "model.gguf", family), tokenizer_of(family)
    made = choose_template.create_with_right_prompts(session.client, spec_of(gguf, said), tokenizer, EPISODE)
    assert made.family == chosen
    messages, prompt = next(choose_template.prompts(tokenizer, choose_template.probes(EPISODE, "Be brief.")))
    assert messages == [{"role": "system", "content": "Be brief."}, USER]
    assert (ollama.render(session.client, made.name, messages) == prompt) == right


def test_what_a_template_refuses_is_no_probe() -> None:
    gemma2 = Family("gemma", "google-gemma-2-2b-it", "<end_of_turn>", "<bos>")
    assert list(choose_template.prompts(tokenizer_of(gemma2), choose_template.probes(EPISODE, "Be brief."))) == []
    found = list(choose_template.prompts(tokenizer_of(gemma2), choose_template.probes(EPISODE, None)))
    assert len(found) == 5 and not any("<bos>" in prompt for _, prompt in found)


def test_a_model_that_does_not_end_gets_no_name_but_by_force(
    session: ollama.Session, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = spec_of(model(tmp_path / "model.gguf", BY_NAME["smollm2"]), "smollm2")
    ollama.create(session.client, spec, force=True)
    asked = {"the first prompt": [USER], "an observation": [SYSTEM, USER, ASSISTANT, OBSERVATION]}
    with pytest.raises(Failed, match=r"no end token in 256 tokens of answer to the first prompt.*FORCE=1"):
        choose_template.answers_end(session.client, spec.name, asked)
    assert choose_template.answers_end(session.client, spec.name, asked, force=True) is False
    assert "warning: react-trial: no end token" in capfd.readouterr().err


def test_a_model_that_ends_by_its_token_passes(session: ollama.Session, tmp_path: Path) -> None:
    spec = spec_of(model(tmp_path / "model.gguf", BY_NAME["smollm2"], ends=True), "smollm2")
    ollama.create(session.client, spec, force=True)
    assert choose_template.answers_end(session.client, spec.name, {"the first prompt": [USER]}) is True
