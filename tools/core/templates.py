"""The one way to a template: a file of templates/, in which an unknown name is an error."""

from functools import cache

import jinja2
import orjson

from tools.core import quote, run_folder

TEMPLATES = run_folder.ROOT / "templates"


@cache
def template(name: str) -> jinja2.Template:
    """A template by its path in templates/; an unknown name in it is an error.

    What stands in an .html.j2 is escaped. Elsewhere the filters of quote.py quote what may be a stranger's.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=lambda path: path is not None and path.endswith(".html.j2"),
    )
    environment.filters |= quote.FILTERS
    # JSON in a script element: in the order and the short form of orjson.
    environment.policies |= {"json.dumps_function": lambda value: orjson.dumps(value).decode(), "json.dumps_kwargs": {}}
    return environment.get_template(name)
