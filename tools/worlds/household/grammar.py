"""Which actions no room of the household ever admits, whatever stands in it."""

import re

from tools.worlds.household.facts import facts
from tools.worlds.household.world import kind

# ALFWorld's own commands: alfworld 0.4.2, data/alfred.twl2 and alfworld/agents/environment.
THING = r"[a-z]+ \d+"
FORMS = [
    r"(look|inventory|help)",
    rf"(go) to (?P<place>{THING})",
    rf"(open|close) (?P<door>{THING})",
    rf"(take) (?P<thing>{THING}) from (?P<place>{THING})",
    rf"(move) (?P<thing>{THING}) to (?P<place>{THING})",
    rf"(heat|cool|clean) (?P<thing>{THING}) with (?P<tool>{THING})",
    rf"(slice) (?P<thing>{THING}) with {THING}",
    rf"(use|examine) {THING}",
]


def refusal(action: str) -> str | None:
    """Why no room admits an action; None when one may.

    A kind of thing that catalog/household.yaml does not know is taken on trust: a user's rooms may hold it.
    """
    found = next(filter(None, (re.fullmatch(form, action.strip()) for form in FORMS)), None)
    if re.fullmatch(rf"put {THING} (in|on|in/on) {THING}", action.strip()):
        return "ALFWorld has said `move O to R` for it since 0.4"
    if not found:
        return "the household has no such action; things are named with their numbers"
    verb, parts = found[1], {name: kind(part) for name, part in found.groupdict().items()}
    receptacles, objects = facts().receptacles, facts().objects
    door, thing, tool = (parts.get(name, "") for name in ("door", "thing", "tool"))
    if door in objects or (door in receptacles and not receptacles[door].openable):
        return f"no {door} can be opened or closed"
    if parts.get("place") in objects and parts["place"] not in receptacles:
        return f"no {parts['place']} is a place"
    task = facts().tasks.get(verb)
    if tool and task and task.at and tool != task.at:
        return f"things are {verb}ed with a {task.at}"
    if tool and thing in objects and verb not in objects[thing].can:
        return f"no {thing} can be {verb}ed"
    return None


def finishes(goal: str, action: str) -> bool:
    """Whether an action can be a won game's last: an object put down, or a lamp used, and the goal names all in it."""
    found = re.fullmatch(rf"move ({THING}) to ({THING})|use ({THING})", action.strip())
    named = re.findall(r"\w+", goal)
    return found is not None and all(kind(each) in named for each in found.groups() if each)
