"""The tree itself: nothing of one machine in it, locks that can be trusted, documentation that keeps up."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from callcenter.settings import explain_defaults

RunCommand = Callable[..., subprocess.CompletedProcess[str]]
LARGEST_BYTES = 1_500_000
BINARY = {".wav", ".flac", ".png", ".ico", ".woff2", ".sln", ".gz"}


@pytest.fixture(scope="module")
def files(repository: Path) -> list[Path]:
    """What is in the repository: the files git knows, and those it would take."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    found = [repository / name for name in listing.split("\0") if name]
    assert len(found) > 50
    return [path for path in found if path.is_file()]


@pytest.fixture(scope="module")
def texts(files: list[Path]) -> dict[Path, str]:
    return {path: path.read_text(encoding="utf-8") for path in files if path.suffix not in BINARY}


def found_in(texts: dict[Path, str], pattern: str) -> list[str]:
    """`file:line: text` of each match; this file, which names what it looks for, aside."""
    return [
        f"{path}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}"
        for path, text in texts.items()
        if path != Path(__file__).resolve()
        for match in re.finditer(pattern, text)
    ]


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        (
            "hosts of package registries",
            r"pypi\.org|pythonhosted|registry\.npmjs|(?:deb|ftp|security)\.debian\.org",
        ),
        (
            "mirrors of package registries",
            r"(?i)mirrors?\.[a-z0-9-]+\.(?:com|cn|edu|org)|tsinghua\.edu|npmmirror|nexus",
        ),
        ("paths of one machine", r"(?<![\w./-])/(?:work|root|home/\w+|Users/\w+)/[\w.]"),
        ("addresses in locks", r"(?m)^(?:--(?:index|extra|find|trusted).*|.* @ (?:https?|file|git).*)$"),
        ("private keys", r"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/]{40}"),
    ],
)
def test_nothing_of_one_machine_or_network_is_in_the_tree(
    texts: dict[Path, str], what: str, pattern: str
) -> None:
    assert not found_in(texts, pattern), what


def test_no_file_is_large(files: list[Path]) -> None:
    assert [path for path in files if path.stat().st_size > LARGEST_BYTES] == []


def test_no_recording_and_no_settings_of_a_site_are_in_the_tree(files: list[Path], repository: Path) -> None:
    names = {str(path.relative_to(repository)) for path in files}
    assert [name for name in names if name.startswith("recordings/")] == ["recordings/.gitkeep"]
    assert "callcenter.toml" not in names
    assert not [name for name in names if name.startswith(("var/", ".venv/"))]


def test_no_test_skips(texts: dict[Path, str], repository: Path) -> None:
    tests = {path: text for path, text in texts.items() if path.is_relative_to(repository / "tests")}
    pattern = r"importorskip|(?:pytest|mark|unittest)\.(?:skip|skipif|xfail|skipTest|SkipTest|skipUnless)\b"
    assert not found_in(tests, pattern)
    console = {
        path: text for path, text in texts.items() if path.is_relative_to(repository / "agent_console")
    }
    assert not found_in(console, r"\b(?:it|test|describe)\.(?:skip|skipIf|runIf|todo|only|fails)\b")


def test_every_silenced_warning_says_why(texts: dict[Path, str], repository: Path) -> None:
    code = {path: text for path, text in texts.items() if path.is_relative_to(repository / "callcenter")}
    assert not found_in(code, r"(?m)# (?:noqa(?:: ?[A-Z0-9, ]+)?|type: ignore(?:\[[\w, -]+\])?)[ \t]*$")


def test_the_domain_imports_nothing_but_itself_and_the_standard_library(repository: Path) -> None:
    for path in sorted((repository / "callcenter" / "domain").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}"
                names = [node.module or ""]
            for name in names:
                allowed = name.split(".")[0] in sys.stdlib_module_names or name.startswith(
                    "callcenter.domain"
                )
                assert allowed, f"{path}:{node.lineno}: {name}"
            assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), f"{path}:{node.lineno}"


def pins(path: Path) -> dict[str, str]:
    """`name ; marker` -> version; every pin must carry a hash."""
    found = {}
    for entry in re.split(r"\n(?=\S)", path.read_text(encoding="utf-8").strip()):
        if entry.startswith("#"):
            continue
        head = re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)(?: ; ([^\\\n]+?))? \\\n", entry)
        assert head, entry[:80]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry[:80]
        found[f"{head[1]} ; {head[3] or ''}"] = head[2]
    return found


def test_locks_name_versions_and_hashes_and_the_test_lock_holds_all_that_runs(repository: Path) -> None:
    run, dev = (pins(repository / "requirements" / name) for name in ("run.txt", "dev.txt"))
    assert run.items() <= dev.items()
    assert list(pins(repository / "requirements" / "uv.txt")) == ["uv ; "]


def test_every_dependency_is_locked(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    locked = {pin.partition(" ")[0].lower() for pin in pins(repository / "requirements" / "dev.txt")}
    wanted = [
        *project["project"]["dependencies"],
        *project["dependency-groups"]["build"],
        *project["dependency-groups"]["dev"],
    ]
    names = {re.split(r"[\[><=; ]", one)[0].lower().replace("_", "-") for one in wanted}
    assert names <= locked


def test_the_settings_in_the_documentation_are_those_of_the_program(
    repository: Path, callcenter: RunCommand
) -> None:
    operations = (repository / "docs" / "operations.md").read_text(encoding="utf-8")
    shown = operations.split("<!-- settings:begin (callcenter settings --markdown) -->\n")[1]
    assert shown.split("<!-- settings:end -->")[0] == callcenter("settings", "--markdown").stdout
    sample = (repository / "callcenter.toml.example").read_text(encoding="utf-8")
    assert sample == callcenter("settings", "--toml").stdout


def test_a_variable_in_the_documentation_exists(texts: dict[Path, str], repository: Path) -> None:
    known = {row.variable for row in explain_defaults()} | {"CALLCENTER_CONFIG"}
    for path, text in texts.items():
        if path.suffix == ".md" or path.name in {"Makefile", "run"}:
            for name in re.findall(r"CALLCENTER_[A-Z][A-Z_]*[A-Z]", text):
                assert name in known, f"{path}: {name}"


def test_links_between_documents_lead_somewhere(texts: dict[Path, str]) -> None:
    for path, text in texts.items():
        if path.suffix == ".md":
            for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", text):
                assert (path.parent / target).exists(), f"{path}: {target}"


def test_both_readmes_give_the_same_commands(repository: Path) -> None:
    def commands(name: str) -> list[str]:
        text = (repository / name).read_text(encoding="utf-8")
        blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
        return [re.sub(r"\s+#.*", "", line).strip() for block in blocks for line in block.splitlines()]

    assert commands("README.md") == commands("README.zh-CN.md") != []


def test_glossary_spells_every_state_as_the_code_does(repository: Path) -> None:
    from callcenter.domain.agents import AgentState, NotReady
    from callcenter.domain.calls import EndReason, LegState, Outcome, Phase, Place

    glossary = (repository / "docs" / "glossary.md").read_text(encoding="utf-8")
    for words in (AgentState, NotReady, EndReason, LegState, Outcome, Phase, Place):
        for word in words:
            assert f"`{word.value}`" in glossary, f"{words.__name__}.{word.name}"


def test_what_the_machine_runs_first_is_valid_shell(repository: Path) -> None:
    for script in [*sorted((repository / "tools").glob("*.sh")), repository / ".ci" / "run"]:
        subprocess.run(["bash", "-n", script], check=True, timeout=60)
        assert script.stat().st_mode & 0o111, script


def test_continuous_integration_runs_what_the_readme_says(repository: Path) -> None:
    script = (repository / ".ci" / "run").read_text(encoding="utf-8")
    commands = [line for line in script.splitlines() if line.startswith("make ")]
    assert commands == ["make check", "make test"]
    told = (repository / "README.md").read_text(encoding="utf-8")
    told += (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert all(command in told for command in commands)
