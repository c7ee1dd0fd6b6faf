"""What the page draws: memory, lengths, curves. Only figures and the catalog's words go into it, nothing of a file."""

from collections.abc import Mapping, Sequence

from tools.core import catalog, templates
from tools.core.catalog import Method
from tools.data import stats
from tools.data.stats import Measured
from tools.evaluation.curves import Curve
from tools.recipes import index
from tools.recipes.plan import Plan


def memory(plans: Mapping[str, Plan], words: Mapping[str, str]) -> str:
    """The memory that each method takes, as recipes/index.html draws it, on one scale; the first with its parts."""
    drawn = [(catalog.methods()[key], each) for key, each in plans.items()]
    return templates.template("board/memory.html.j2").render(plans=drawn, words=words, why=why_not, how=index.how)


def why_not(found: Plan, method: Method) -> str:
    """Why a method has no recipe on a tier, however much memory there is; empty where it can have one."""
    return index.impossible(found.model, method, found.tier, found.settings.sequence_len)


def lengths(found: Measured) -> str:
    """The lengths of episodes in tokens, as the page of `make stats` draws them."""
    assert found["tokens"]
    plot = stats.plot(found["tokens"], stats.SEQUENCES)
    return templates.template("board/lengths.html.j2").render(plot=plot, unit="tokens")


def curves(found: Sequence[Curve]) -> str:
    """The plots of a training, as report.html draws them."""
    return templates.template("board/curves.html.j2").render(curves=found)
