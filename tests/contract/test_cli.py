"""The command line as a person meets it: the real command in a process of its own, one clear line when it says no."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest

from callcenter.app import DEMO_CONTENT
from callcenter.database import Database, migrate
from callcenter.directory.content import QueueData
from callcenter.directory.store import Accounts, Directory, LoginRefused
from callcenter.domain.agents import UserRole

RunCommand = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def site(tmp_path: Path, repository: Path) -> Path:
    """A site's own directory with its own copy of the flows."""
    shutil.copytree(repository / "ivr_flows", tmp_path / "ivr_flows")
    return tmp_path


def complaint(done: subprocess.CompletedProcess[str], *, status: int) -> str:
    """The one line on the standard error stream."""
    assert done.returncode == status, done.stderr
    (line,) = done.stderr.splitlines()
    assert "Traceback" not in done.stderr
    return line


# --- help, version, settings --------------------------------------------------------------------------------


def test_help_names_every_command(callcenter: RunCommand) -> None:
    done = callcenter("--help")
    assert done.returncode == 0
    for command in ("run", "setup", "settings", "check", "flows", "prompts", "users", "version"):
        assert f" {command} " in done.stdout


def test_version(callcenter: RunCommand) -> None:
    assert callcenter("version").stdout.startswith("callcenter 0.")


def test_settings_shows_each_with_its_variable_value_source_and_default(
    callcenter: RunCommand, tmp_path: Path
) -> None:
    (tmp_path / "callcenter.toml").write_text("[http]\nport = 81\n", encoding="utf-8")
    table = callcenter("settings", env={"CALLCENTER_DISK__MIN_FREE_MB": "9"}).stdout
    for word in (
        "http.port",
        "CALLCENTER_HTTP__PORT",
        "81",
        "callcenter.toml:2",
        "8080",
        "9 MB",
        "environment",
    ):
        assert word in table


def test_settings_as_json(callcenter: RunCommand) -> None:
    rows = {row["name"]: row for row in json.loads(callcenter("settings", "--json").stdout)}
    assert rows["disk.min_free_mb"] == {
        "name": "disk.min_free_mb",
        "variable": "CALLCENTER_DISK__MIN_FREE_MB",
        "value": "500",
        "source": "default",
        "default": "500",
        "unit": "MB",
        "allowed": "1–100000000",
        "zh": rows["disk.min_free_mb"]["zh"],
        "en": rows["disk.min_free_mb"]["en"],
    }


def test_the_settings_file_is_given_before_the_command(callcenter: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text("[http]\nport = 83\n", encoding="utf-8")
    assert "site.toml:2" in callcenter("--config", "site.toml", "settings").stdout


# --- what is wrong is one line ------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "setup", "check", "settings", "users list", "flows check"])
def test_a_wrong_setting_stops_every_command_that_reads_settings(
    callcenter: RunCommand, tmp_path: Path, command: str
) -> None:
    (tmp_path / "callcenter.toml").write_text("[http]\nport = 99999\n", encoding="utf-8")
    line = complaint(callcenter(*command.split()), status=2)
    assert line.startswith("callcenter: callcenter.toml:2: http.port = 99999: ")
    assert "1–65535" in line
    assert [path.name for path in tmp_path.iterdir()] == ["callcenter.toml"]  # nothing was begun


def test_a_settings_file_that_is_not_there(callcenter: RunCommand) -> None:
    assert "no.toml" in complaint(callcenter("--config", "no.toml", "check"), status=2)


def test_an_unknown_variable(callcenter: RunCommand) -> None:
    line = complaint(callcenter("check", env={"CALLCENTER_HTTP_PORT": "81"}), status=2)
    assert line.startswith("callcenter: CALLCENTER_HTTP_PORT: ")
    assert "CALLCENTER_HTTP__PORT" in line


def test_an_unknown_command_is_wrong_usage(callcenter: RunCommand) -> None:
    done = callcenter("rnu")
    assert done.returncode == 2
    assert "rnu" in done.stderr


def test_a_data_directory_that_cannot_be_made_is_named(callcenter: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    there = {"CALLCENTER_DATA_DIR": "file/var"}
    assert "file/var" in complaint(callcenter("setup", env=there), status=1)
    done = callcenter("--debug", "setup", env=there)
    assert done.returncode == 1
    assert "Traceback" in done.stderr  # and with --debug where it happened


def test_people_are_asked_for_before_there_is_a_database(callcenter: RunCommand, tmp_path: Path) -> None:
    assert "make setup" in complaint(callcenter("users", "list"), status=1)
    assert not list(tmp_path.iterdir())


# --- check --------------------------------------------------------------------------------------------------


def test_check_is_content_with_what_is_shipped(callcenter: RunCommand, site: Path) -> None:
    done = callcenter("check")
    assert done.returncode == 0, done.stderr
    assert not (site / "var").exists()  # it only looks


def test_check_names_file_and_line_of_a_wrong_flow(callcenter: RunCommand, site: Path) -> None:
    flow = site / "ivr_flows" / "12345.yaml"
    text = flow.read_text(encoding="utf-8")
    line = 1 + next(n for n, content in enumerate(text.splitlines()) if "queue: hotline" in content)
    flow.write_text(text.replace("queue: hotline", "queue: nowhere"), encoding="utf-8")
    done = callcenter("check")
    assert done.returncode == 1
    assert f"12345.yaml:{line}:" in done.stderr
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_flows_are_looked_for_where_the_settings_say(callcenter: RunCommand, site: Path) -> None:
    (site / "ivr_flows").rename(site / "lines")
    done = callcenter("flows", "check", env={"CALLCENTER_FLOWS__DIR": "lines"})
    assert done.returncode == 0, done.stderr
    assert "12345" in done.stdout


# --- users --------------------------------------------------------------------------------------------------


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """The database of a site as a set-up leaves it."""
    (tmp_path / "var").mkdir()
    url = f"sqlite:///{tmp_path}/var/callcenter.db"
    await migrate(url, progress=lambda _: None)
    async with Database.connect(url) as connected:
        await Directory(connected).seed(DEMO_CONTENT)
        yield connected


def accounts(database: Database) -> Accounts:
    return Accounts(database, session_hours=1, max_failures=5, lock_seconds=1)


async def test_users_are_listed_and_their_phones_secrets_only_when_asked_for(
    callcenter: RunCommand, database: Database
) -> None:
    secrets = await Directory(database).phone_secrets()
    secrets["1001"] = await Directory(database).renew_phone_secret("1001")
    plain = callcenter("users", "list").stdout
    assert "agent1" in plain
    assert "1001" in plain
    assert secrets["1001"] not in plain
    assert secrets["1001"] in callcenter("users", "list", "--secrets").stdout


async def test_a_user_is_added_and_logs_in(callcenter: RunCommand, database: Database) -> None:
    options = ("--name", "李四", "--role", "agent", "--phone", "1009", "--skill", "hotline=3")
    done = callcenter("users", "add", "lisi", *options, stdin="long enough\n")
    assert done.returncode == 0, done.stderr
    session = await accounts(database).log_in("lisi", "long enough", client="test")
    assert session.roles == {UserRole.AGENT}
    assert "lisi" in complaint(callcenter("users", "add", "lisi", *options, stdin="long enough\n"), status=1)


async def test_a_password_is_changed_and_a_user_disabled(callcenter: RunCommand, database: Database) -> None:
    assert "8" in complaint(callcenter("users", "password", "agent1", stdin="demo\n"), status=1)
    assert callcenter("users", "password", "agent1", stdin="long enough\n").returncode == 0
    await accounts(database).log_in("agent1", "long enough", client="test")
    assert callcenter("users", "disable", "agent1").returncode == 0
    with pytest.raises(LoginRefused, match="disabled"):
        await accounts(database).log_in("agent1", "long enough", client="test")
    assert "nobody" in complaint(callcenter("users", "disable", "nobody"), status=1)


async def test_flows_are_held_against_the_queues_of_the_site(
    callcenter: RunCommand, database: Database, site: Path
) -> None:
    await Directory(database).save_queue(QueueData(queue="night", zh="夜间队列", en="Night", skill="hotline"))
    flow = site / "ivr_flows" / "12345.yaml"
    flow.write_text(
        flow.read_text(encoding="utf-8").replace("queue: hotline", "queue: night"), encoding="utf-8"
    )
    done = callcenter("flows", "check")
    assert done.returncode == 0, done.stderr


# --- before anything is installed: make's own scripts -------------------------------------------------------


def run_tool(repository: Path, *command: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=repository, env=dict(env), capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def plain_user(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody who is not root and has neither sudo nor apt-get."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "id").write_text("#!/bin/sh\necho 1000\n", encoding="utf-8")
    (programs / "id").chmod(0o755)
    return {"PATH": str(programs)}


def test_a_missing_system_package_is_one_line_for_who_may_not_install(
    repository: Path, plain_user: dict[str, str]
) -> None:
    done = run_tool(repository, "/bin/sh", "tools/system-packages.sh", "espeak-ng", "sox", env=plain_user)
    assert "apt-get install espeak-ng sox" in complaint(done, status=1)


def test_a_present_system_package_is_left_alone(repository: Path, plain_user: dict[str, str]) -> None:
    program = Path(plain_user["PATH"]) / "espeak-ng"
    program.write_text("", encoding="utf-8")
    program.chmod(0o755)
    done = run_tool(repository, "/bin/sh", "tools/system-packages.sh", "espeak-ng", env=plain_user)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_pip_settings_of_the_machine_reach_uv(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://pip.example/simple\nextra-index-url =\n  https://a.example/\n  https://b.example/\n"
        "find-links = /no/such/wheels\n",
        encoding="utf-8",
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    env |= {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}
    command = (sys.executable, "tools/pip_to_uv.py")
    printed = run_tool(repository, *command, env=env).stdout
    assert "export UV_DEFAULT_INDEX=https://pip.example/simple\n" in printed
    assert "UV_FIND_LINKS" not in printed  # pip passes over a directory that is not there, uv would give up
    assert "export UV_INDEX='https://a.example/ https://b.example/'\n" in printed
    printed = run_tool(repository, *command, env=env | {"UV_DEFAULT_INDEX": "https://uv.example/"}).stdout
    assert "UV_DEFAULT_INDEX" not in printed  # uv's own settings win


def test_an_environment_that_is_made_is_left_alone(repository: Path) -> None:
    run_tool(repository, "/bin/sh", "tools/environment.sh", "dev", env=os.environ)
    began = time.monotonic()
    done = run_tool(repository, "/bin/sh", "tools/environment.sh", "dev", env=os.environ)
    assert (done.returncode, done.stdout) == (0, "")
    assert time.monotonic() - began < 1


def test_the_demo_does_not_open_itself_to_other_machines(callcenter: RunCommand, site: Path) -> None:
    """Everybody knows its passwords; who means it says so."""
    for setting in ("CALLCENTER_HTTP__BIND", "CALLCENTER_SIP__BIND"):
        refused = callcenter("check", env={setting: "0.0.0.0"})
        assert refused.returncode == 1
        assert "demo_beyond_this_machine" in refused.stderr
    meant = {"CALLCENTER_HTTP__BIND": "0.0.0.0", "CALLCENTER_DEMO_BEYOND_THIS_MACHINE": "true"}
    assert callcenter("check", env=meant).returncode == 0
