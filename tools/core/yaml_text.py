"""YAML of any origin as plain values: what it unfolds to is counted before any of it is made."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tools import BadInput
from tools.core.quote import visible

# libyaml's loader is 8 times faster; PyYAML has it on every platform that publishes wheels.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# At most, aliases unfolded; the longest of Axolotl's own examples has some 200 values, and nests 5 deep. libyaml calls
# itself for each level and ends the process at some 50,000.
VALUES, DEPTH = 5000, 20
# Letters of a number or date: Python takes ever longer to read a number of more.
NUMBER = 100
PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "timestamp", "map", "seq")}
# Where a value stands: the keys and list places above it.
Keys = tuple[str | int, ...]
MERGE, TEXT, INT = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:str", "tag:yaml.org,2002:int"


def parse(text: str, name: str | Path) -> Any:
    """The value of a YAML text, made of mappings, lists, texts, numbers, truths, dates and nothing.

    Raises BadInput, which begins with `name` and the line, for what is no YAML, has a tag of its own, a key twice, a
    value that contains itself, or is larger or deeper than any recipe.
    """
    return parse_with_lines(text, name)[0]


def parse_with_lines(text: str, name: str | Path) -> tuple[Any, Mapping[Keys, int]]:
    """The value of a YAML text, as `parse`, and the line (from 1) of each key and list entry, by the keys above it."""
    try:
        check_events(text, name)
        node = yaml.compose(text, Loader=LOADER)
        if node is None:
            return None, {}
        check_node(name, node, {})
        return yaml.constructor.SafeConstructor().construct_document(node), dict(lines(node))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        tab = text.splitlines()[line - 1 : line] and "\t" in text.splitlines()[line - 1]
        why = "a tab; YAML is indented with spaces" if tab else shown(error.problem)
        raise BadInput(f"{name}:{line}: not YAML: {why}") from error
    except yaml.YAMLError as error:
        raise BadInput(f"{name}:1: not YAML: {shown(error)}") from error


def lines(node: yaml.Node, above: Keys = ()) -> Iterator[tuple[Keys, int]]:
    """The line (from 1) of each key and list entry below a node, by the keys above it."""
    inside: list[tuple[str | int, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        inside = [(key.value, key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        inside = [(number, value, value) for number, value in enumerate(node.value)]
    for key, marked, value in inside:
        yield (*above, key), marked.start_mark.line + 1
        yield from lines(value, (*above, key))


def check_events(text: str, name: str | Path) -> None:
    """Raise BadInput for a text of too many values or levels, met one by one; yaml.YAMLError for what is no YAML."""
    if any("\ud800" <= each <= "\udfff" for each in text):
        raise BadInput(f"{name}:1: {shown(text)}: not UTF-8; write it anew")
    depth = values = 0
    for event in yaml.parse(text, Loader=LOADER):
        values += isinstance(event, yaml.NodeEvent)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEPTH or values > VALUES:
            raise too_large(name, event)


def too_large(name: str | Path, where: Any) -> BadInput:
    """The refusal of a text that is larger or deeper than any recipe, by the line where that was found."""
    line = where.start_mark.line + 1
    return BadInput(
        f"{name}:{line}: more than {VALUES} values or {DEPTH} levels, aliases unfolded; no recipe has so many"
    )


def check_node(name: str | Path, node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """How many values a node unfolds to, and how deep: each node is looked at once, however often it is an alias.

    `known`: both, by the node's id; None while it is looked at. Raises BadInput as `parse`.
    """
    line = node.start_mark.line + 1
    if id(node) in known:
        found = known[id(node)]
        if found is None:
            raise BadInput(f"{name}:{line}: a value that contains itself (an alias to what is around it)")
        return found
    if isinstance(node, yaml.ScalarNode):
        check_scalar(f"{name}:{line}", node)
        return 1, 1
    if node.tag not in PLAIN:
        raise BadInput(f"{name}:{line}: {shown(node.tag)}: a tag that no recipe has; remove it")
    known[id(node)] = None
    if isinstance(node, yaml.MappingNode):
        check_keys(name, node)
    inside = [part for each in node.value for part in (each if isinstance(each, tuple) else (each,))]
    sizes = [check_node(name, each, known) for each in inside]
    values, depth = 1 + sum(size for size, _ in sizes), 1 + max((deep for _, deep in sizes), default=0)
    if values > VALUES or depth > DEPTH:
        raise too_large(name, node)
    known[id(node)] = values, depth
    return values, depth


def check_keys(name: str | Path, node: yaml.MappingNode) -> None:
    """Raise BadInput, with its line, for a key that stands twice in one mapping, or is a list or a mapping."""
    first: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise BadInput(f"{name}:{line}: a key that is no text")
        if key.value in first and key.value != "<<":
            twice = f"{shown(key.value)} stands here and on line {first[key.value]}"
            raise BadInput(f"{name}:{line}: {twice}; keep one of them")
        first[key.value] = line


def check_scalar(where: str, node: yaml.ScalarNode) -> None:
    """Raise BadInput for a single value that Python cannot make, or a text that no file or screen takes."""
    text = node.value
    if node.tag in (TEXT, MERGE):
        if "\0" in text or any("\ud800" <= each <= "\udfff" for each in text):
            raise BadInput(f"{where}: {shown(text)}: a character that no text has; take it out")
        return
    if node.tag not in PLAIN:
        raise BadInput(f"{where}: {shown(node.tag)}: a tag that no recipe has; remove it")
    value: Any = None
    try:
        if len(text) <= NUMBER:
            value = yaml.constructor.SafeConstructor().construct_object(node)
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError, yaml.YAMLError) as error:
        raise BadInput(f"{where}: {shown(text)}: no number, date or truth; put a text in quotes") from error
    if len(text) > NUMBER or (node.tag == INT and not -(2**63) <= value < 2**63):
        raise BadInput(f"{where}: {shown(text)}: a number of more than 64 bits; no recipe has one")


def line_of(text: str, *keys: str | int) -> int:
    """The line of a key in a YAML text, see `line_in`. Raises yaml.YAMLError for no YAML."""
    node = yaml.compose(text, Loader=LOADER)
    return line_in(dict(lines(node)) if node else {}, keys)


def line_in(known: Mapping[Keys, int], keys: Keys) -> int:
    """The line (from 1) of a key, by the keys and list places above it; of the last that is there, else 1."""
    there = (known[keys[:depth]] for depth in range(len(keys), 0, -1) if keys[:depth] in known)
    return next(there, 1)


def shown(text: object) -> str:
    """The beginning of a text, for a message of one line."""
    return visible(str(text)[:80])
