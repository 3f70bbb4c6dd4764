"""Jinja2 templates of the report, with the filters that write numbers. Everything from data is escaped in them."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from secateur.core.site import in_words
from secateur.report import markup

TEMPLATES = Environment(
    loader=PackageLoader("secateur.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)
TEMPLATES.globals["numbers"] = markup.numbers
TEMPLATES.filters |= {
    "number": markup.number,
    "change": markup.change,
    "interval": markup.interval,
    "p_value": lambda value: Markup(markup.p_value(value)),
    "capital": markup.capital,
    "in_words": in_words,
    "breakable": lambda code: Markup(markup.text(code).replace("(", "(<wbr>").replace("=", "=<wbr>")),
}


def fragment(template: str, macro: str, **values: object) -> str:
    """Return the HTML of one macro of a template.

    Args:
        template: Name of the file, without `.html.j2`.
        macro: Name of the macro in it.
        values: Its arguments.
    """
    module = TEMPLATES.get_template(f"{template}.html.j2").module
    return str(module.__dict__[macro](**values))
