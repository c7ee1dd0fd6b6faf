"""The one way to render a file of templates/, in one strict environment. Chat templates render in template_sandbox."""

from functools import cache

import jinja2
import orjson

from tools.core import quote, run_folder

TEMPLATES = run_folder.ROOT / "templates"


def template(name: str) -> jinja2.Template:
    """A template by its path in templates/. Raises jinja2.TemplateNotFound; rendering raises UndefinedError.

    Values in an .html.j2 are escaped. Elsewhere the filters of quote.py quote values that a user or a model wrote.
    """
    return environment().get_template(name)


@cache
def environment() -> jinja2.Environment:
    """The one Jinja environment of all templates: a name that nobody gave is an error."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=lambda path: path is not None and path.endswith(".html.j2"),
    )
    made.filters |= quote.FILTERS
    # JSON in a script element: in the order and the short form of orjson.
    made.policies |= {"json.dumps_function": lambda value: orjson.dumps(value).decode(), "json.dumps_kwargs": {}}
    return made
