"""Settings: what the file and the environment say arrives, what is wrong is named with its place; logs keep quiet."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from callcenter.logs import masked, set_up_logs
from callcenter.settings import (
    LogFormat,
    Profile,
    Settings,
    SettingsError,
    explain_defaults,
    explain_settings,
    load_settings,
)


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "callcenter.toml") -> Path:
    Path(name).write_text(text, encoding="utf-8")
    return Path(name)


def problems(file: Path | None = None) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load_settings(file)
    return caught.value.problems


def test_without_file_and_environment_the_defaults_serve_this_machine_alone(tmp_path: Path) -> None:
    settings = load_settings()
    assert (settings.http.bind, settings.http.port) == ("127.0.0.1", 8080)
    assert (settings.sip.bind, settings.sip.port) == ("127.0.0.1", 5060)
    assert settings.sip.trunk_addresses == ("127.0.0.1/32",)
    assert settings.profile is Profile.DEMO
    assert settings.data_dir == tmp_path / "var"
    assert settings.database_url == f"sqlite:///{tmp_path}/var/callcenter.db"


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write('data_dir = "data"\n[http]\nport = 81\nbind = "0.0.0.0"\n[log]\nformat = "json"\n')
    monkeypatch.setenv("CALLCENTER_HTTP__PORT", "82")
    settings = load_settings()
    assert (settings.http.port, settings.http.bind, settings.sip.port) == (82, "0.0.0.0", 5060)
    assert settings.data_dir == Path.cwd() / "data"
    assert settings.log.format is LogFormat.JSON
    sources = {row.name: row.source for row in explain_settings()}
    assert sources["http.port"] == "environment"
    assert sources["http.bind"] == "callcenter.toml:4"
    assert sources["sip.port"] == "default"


def test_the_file_is_named_by_the_caller_or_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    write("[http]\nport = 81\n", "one.toml")
    write("[http]\nport = 82\n", "two.toml")
    monkeypatch.setenv("CALLCENTER_CONFIG", "one.toml")
    assert load_settings().http.port == 81
    assert load_settings(Path("two.toml")).http.port == 82


def test_a_list_is_written_as_a_list_or_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    write('[sip]\ntrunk_addresses = ["10.1.2.3", "fd00::/64"]\n')
    assert load_settings().sip.trunk_addresses == ("10.1.2.3/32", "fd00::/64")
    monkeypatch.setenv("CALLCENTER_SIP__TRUNK_ADDRESSES", "10.0.0.0/8, 127.0.0.1")
    assert load_settings().sip.trunk_addresses == ("10.0.0.0/8", "127.0.0.1/32")


def test_the_database_may_be_elsewhere() -> None:
    write('[database]\nurl = "postgresql://hotline:secret@db/hotline"\n')
    assert load_settings().database_url == "postgresql://hotline:secret@db/hotline"


def test_settings_cannot_be_changed_afterwards() -> None:
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.http.port = 1  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        settings.profile = Profile.PRODUCTION  # type: ignore[misc]


WRONG = [
    ("[http]\nport = 0\n", "callcenter.toml:2: http.port = 0: ", "1–65535"),
    ("\n[http]\n# the port\nport = 65536\n", "callcenter.toml:4: http.port = 65536: ", "1–65535"),
    ('[http]\nport = "web"\n', "callcenter.toml:2: http.port = web: ", "1–65535"),
    ("http.port = 0\n", "callcenter.toml:1: http.port = 0: ", "1–65535"),
    ("http = { port = 0 }\n", "callcenter.toml:1: http.port = 0: ", "1–65535"),
    ('[http]\nbind = "localhost"\n', "callcenter.toml:2: http.bind = localhost: ", "an IP address"),
    ('data_dir = ""\n', "callcenter.toml:1: data_dir = (empty): ", "a directory"),
    ('profile = "prod"\n', "callcenter.toml:1: profile = prod: ", "demo | production"),
    ("[session]\nhours = nan\n", "callcenter.toml:2: session.hours = nan: ", "0.1–168"),
    (
        '[sip]\ntrunk_addresses = ["0.0.0.0/0"]\n',
        "callcenter.toml:2: sip.trunk_addresses = 0.0.0.0/0: ",
        "never the",
    ),
    ("[sip]\ntrunk_addresses = [1]\n", "callcenter.toml:2: sip.trunk_addresses = 1: ", "networks"),
    ('[sip]\ntrunk_contact = "gw"\n', "callcenter.toml:2: sip.trunk_contact = gw: ", "host:port"),
    ('[asterisk]\nsystem_name = "a-1"\n', "callcenter.toml:2: asterisk.system_name = a-1: ", "16 at most"),
    ('[asterisk]\nmirror = "http://a/ [x]"\n', "callcenter.toml:2: asterisk.mirror = ", "address"),
    ('[database]\nurl = "mysql://a/b"\n', "callcenter.toml:2: database.url = mysql://a/b: ", "postgresql://"),
    ("[http]\nprot = 1\n", "callcenter.toml:2: http.prot: ", "did you mean http.port?"),
    ("[htpp]\nport = 1\n", "callcenter.toml:1: htpp: ", "did you mean http"),
    ("http = 5\n", "callcenter.toml:1: http: ", "[http]"),
    ("[sip]\nport = 8080\n", "callcenter.toml:", "already used by"),
    ("[sip]\nport = 10500\n", "callcenter.toml:2: sip.port: ", "range of ports for voice"),
    ("[sip]\nrtp_end = 10005\n", "callcenter.toml:2: sip.rtp_end: ", "at least 10"),
    ("[sip]\nmax_calls = 251\n", "callcenter.toml:2: sip.max_calls: ", "carry 250 callers"),
    ("[http]\nport = = 1\n", "callcenter.toml:2: ", "not valid TOML"),
    ("[http", "callcenter.toml:1: ", "not valid TOML"),
]


@pytest.mark.parametrize(("text", "head", "advice"), WRONG)
def test_a_wrong_line_is_named_with_what_is_allowed(text: str, head: str, advice: str) -> None:
    write(text)
    (problem,) = problems()
    assert problem.startswith(head)
    assert advice in problem
    assert "\n" not in problem


def test_every_wrong_line_is_told_at_once() -> None:
    write('[http]\nport = 0\nbind = "x"\n[disk]\nmin_free_mb = 0\n')
    assert len(problems()) == 3


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLCENTER_HTTP__PORT", "0")
    (problem,) = problems()
    assert problem.startswith("CALLCENTER_HTTP__PORT: http.port = 0: ")
    assert "1–65535" in problem


@pytest.mark.parametrize(
    ("name", "advice"),
    [("CALLCENTER_HTTP__PROT", "CALLCENTER_HTTP__PORT?"), ("CALLCENTER_PROFLE", "CALLCENTER_PROFILE?")],
)
def test_an_unknown_variable_is_named_once_with_the_nearest_known(
    monkeypatch: pytest.MonkeyPatch, name: str, advice: str
) -> None:
    monkeypatch.setenv(name, "1")
    (problem,) = problems()
    assert problem.startswith(f"{name}: ")
    assert advice in problem


def test_a_file_that_is_not_there_or_not_utf8_is_named() -> None:
    assert problems(Path("no.toml"))[0].startswith("no.toml: ")
    Path("gbk.toml").write_bytes('data_dir = "数据"'.encode("gbk"))
    assert "UTF-8" in problems(Path("gbk.toml"))[0]
    assert problems(Path())  # a directory


def test_a_byte_order_mark_does_no_harm() -> None:
    Path("callcenter.toml").write_text("[http]\nport = 81\n", encoding="utf-8-sig")
    assert load_settings().http.port == 81


def test_a_database_password_is_never_shown() -> None:
    write('[database]\nurl = "postgresql://hotline:geheim@db/x"\n')
    assert "geheim" not in str(explain_settings())
    write('[database]\nurl = "mysql://hotline:geheim@db/x"\n')
    assert "geheim" not in str(problems())


def test_every_setting_is_explained_in_both_languages_with_what_it_allows() -> None:
    for row in explain_defaults():
        assert row.zh, row.name
        assert row.en, row.name
        assert row.allowed, row.name
        assert row.variable == "CALLCENTER_" + row.name.upper().replace(".", "__")


def test_the_sample_file_is_the_defaults(repository: Path) -> None:
    sample = (repository / "callcenter.toml.example").read_text(encoding="utf-8")
    active = "\n".join(
        line[1:] if line.startswith("#") and not line.startswith("# ") else line
        for line in sample.splitlines()
    )
    assert active.count("=") >= len(explain_defaults())
    write(active)
    assert load_settings() == Settings()
    assert {row.source.partition(":")[0] for row in explain_settings()} == {"callcenter.toml"}


# --- logs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def _logs_as_before() -> Iterator[None]:
    """Other tests find the logging they began with."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


quiet_afterwards = pytest.mark.usefixtures("_logs_as_before")

CALLERS = ["13812345678", "+8613812345678", "8613812345678", "075587654321", "0755-87654321", "138 1234 5678"]


@quiet_afterwards
@pytest.mark.parametrize("json_lines", [True, False], ids=["json", "console"])
@pytest.mark.parametrize("caller", CALLERS)
def test_no_log_line_holds_a_whole_caller_number(caller: str, json_lines: bool) -> None:
    stream = io.StringIO()
    set_up_logs(level="debug", json=json_lines, stream=stream)
    log = structlog.get_logger("callcenter.test")
    log.info("call arrived", caller=caller, facts={"caller": caller}, legs=(caller,), note=f"from {caller}")
    log.info("a careless sentence about %s" % caller)  # noqa: G002, UP031 - what a careless author writes
    logging.getLogger("library").warning("GET /calls?caller=%s", caller, extra={"callerid": caller})
    try:
        {}[caller]
    except KeyError:
        log.exception("failed", call={"number": caller})
    written = stream.getvalue()
    assert written.count("*") > 8
    assert caller not in written
    assert caller[-8:] not in written.replace(" ", "").replace("-", "")


@quiet_afterwards
def test_what_is_no_caller_stays_readable() -> None:
    stream = io.StringIO()
    set_up_logs(level="info", json=True, stream=stream)
    facts = {
        "call_id": "ast1-1763763843.12",
        "leg_id": "ast1-1763763843.12-2",
        "ticket": "20261121-000001",
        "dialled": "12345",
        "phone": "1001",
        "port": 5060,
        "seconds": 1.5,
        "up": True,
    }
    structlog.get_logger("callcenter.test").info("call answered", number="12345", **facts)
    line = json.loads(stream.getvalue())
    assert {key: line[key] for key in facts} == facts
    assert (line["number"], line["event"], line["level"]) == ("12345", "call answered", "info")
    assert line["at"].endswith("Z")


@pytest.mark.parametrize(
    ("number", "shown"),
    [("13812345678", "138****5678"), ("12345", "12345"), ("110", "110"), ("", ""), ("87654321", "******21")],
)
def test_a_number_is_masked_in_its_middle(number: str, shown: str) -> None:
    assert masked(number) == shown


@quiet_afterwards
def test_the_level_holds_for_libraries_too() -> None:
    stream = io.StringIO()
    set_up_logs(level="warning", json=True, stream=stream)
    structlog.get_logger("callcenter.test").info("unseen")
    logging.getLogger("library").info("unseen")
    logging.getLogger("library").warning("seen")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["seen"]
