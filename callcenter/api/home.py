"""The page at ``/`` until the console is there: what runs here, whether it is well, and how to make a first call."""

import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from callcenter.api.views import HealthView


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("callcenter.api", "pages"), autoescape=True, undefined=StrictUndefined
    )


def home_page(
    *,
    health: HealthView,
    sip_address: str,
    demo: bool,
    version: str,
    host: str = "127.0.0.1:8080",
) -> str:
    """The page; ``host`` is where the reader asked for it, ``sip_address`` where SIP listens."""
    everywhere, _, sip_port = sip_address.rpartition(":")
    if everywhere == "0.0.0.0":  # noqa: S104 -- nothing is bound here: no telephone can dial this address
        sip_address = re.sub(r":\d+$", "", host) + f":{sip_port}"
    return (
        _templates()
        .get_template("home.html")
        .render(health=health, sip_address=sip_address, demo=demo, version=version, host=host)
    )


def home_style() -> str:
    return _templates().get_template("home.css").render()
