"""The facts of catalog/: models, each figure beside its source in the YAML."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

CATALOG = Path(__file__).resolve().parent.parent / "catalog"


class Package(BaseModel):
    """A Python package that holds a model's weights as a GGUF, for machines that reach no model hub."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    project: str
    gguf: str
    pre_tokenizer: dict[str, Any]


class Model(BaseModel):
    """A base model: its part of a recipe's name (key), title, hub id, licence, chat family and, if any, package."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    title: str
    hub: str
    licence: str
    family: str
    package: Package | None = None


@cache
def models() -> dict[str, Model]:
    """All models of catalog/models.yaml, by key. Raises pydantic.ValidationError when the file breaks its schema."""
    entries = yaml.safe_load((CATALOG / "models.yaml").read_text(encoding="utf-8"))
    return {key: Model(key=key, **entry) for key, entry in entries.items()}
