"""The page at ``/`` until the console is there: what runs here, whether it is well, and how to make a first call."""

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from callcenter.api.views import HealthView


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("callcenter.api", "pages"), autoescape=True, undefined=StrictUndefined
    )


def home_page(*, health: HealthView, sip_address: str, demo: bool, version: str) -> str:
    return (
        _templates()
        .get_template("home.html")
        .render(health=health, sip_address=sip_address, demo=demo, version=version)
    )


def home_style() -> str:
    return _templates().get_template("home.css").render()
