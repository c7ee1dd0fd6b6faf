"""A recipe as a person edits it: checked as it is typed, saved as a copy of their own."""

import re
from collections.abc import Iterator
from pathlib import Path

from tools import BadInput
from tools.board.choice import Choice, shown
from tools.board.uploads import folder
from tools.core import catalog, files, quote
from tools.recipes import commands, recipe, schema
from tools.recipes.recipe import Recipe

NAME = re.compile(r"[a-zA-Z0-9][\w.-]{0,79}", re.ASCII)


def there(tier: str) -> list[str]:
    """The person's own recipes of a tier, as commands take them."""
    return [shown(path) for path in sorted((folder() / tier).glob("*.yaml"))]


def place(name: str, tier: str) -> Path:
    """Where a recipe of the person's own lies: its folder says its tier. Raises BadInput for a name it cannot have."""
    if not NAME.fullmatch(name):
        raise BadInput(f"{quote.visible(name[:80])}: no name for a recipe; letters, digits, dots and dashes make one")
    if name in recipe.names():
        raise BadInput(f"{name}: a generated recipe has this name; give your copy another one")
    return folder() / catalog.pick("tier", tier, catalog.tiers()).key / f"{name}.yaml"


def read(text: str, path: Path) -> Recipe:
    """The recipe that a text is. Raises BadInput, with file:line, as recipe.read_recipe."""
    recipe.check_size(path, len(text.encode(errors="replace")))
    return recipe.parse_recipe(Path(shown(path)), text)


def check(text: str, path: Path, loading: str) -> Iterator[str]:
    """What is found in a text, in lines: at once what needs no Axolotl, then what its schema says too.

    `loading`: what is said while Axolotl is loaded, 10 s the first time.
    """
    try:
        found = read(text, path)
        schema.check_keys(found)
        yield loading
        from tools.training import preflight

        yield "\n".join(map(quote.visible, preflight.table(preflight.check_settings(found))))
    except BadInput as error:
        yield quote.visible(str(error))


def save(text: str, name: str, choice: Choice) -> Path:
    """Save a text as the person's own recipe, in place of the one that is chosen, else under a new name; its path.

    A copy of a generated recipe gets its own name, commands and folder. Raises BadInput for a name that is taken, and
    for what is no recipe.
    """
    path = place(name, choice.tier)
    read(text, path)
    renamed = commands.renamed(text, f"{choice.tier}/{choice.model}-{choice.method}", Path(shown(path)))
    with files.output(path, force=shown(path) == choice.own) as beside:
        beside.write_text(renamed, encoding="utf-8")
    return path
