"""Finds an Asterisk to run, or unpacks a private one from Debian's packages without touching the system.

Debian 12 has no asterisk package, so the packages of a later release are unpacked, not installed, below the data
directory and run through their own dynamic linker: no root, no container, nothing to remove but one directory.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SUITE = "forky"  # the first Debian release with Asterisk 22
PACKAGES = ("asterisk", "asterisk-core-sounds-en-wav", "asterisk-moh-opsound-wav")
OLDEST_MAJOR = 20

#: What the rendered instance loads, in order; nothing else runs. An Asterisk that lacks one of them is not used.
MODULES = (
    # base: timing, configuration stores, dialplan
    *("res_timing_timerfd", "res_crypto", "res_pjproject", "res_sorcery_config", "res_sorcery_memory"),
    *("res_sorcery_astdb", "pbx_config", "res_http_websocket", "res_srtp", "res_rtp_asterisk"),
    *("res_musiconhold", "res_mutestream", "res_speech"),
    # SIP. Deliberately absent, because each is a way for a phone to make a call or to listen in: res_pjsip_refer
    # (REFER and Replaces), res_pjsip_messaging, the anonymous endpoint identifier. chan_pjsip insists on pubsub;
    # every endpoint has allow_subscribe=no.
    *("res_pjsip", "res_pjsip_acl", "res_pjsip_session", "res_pjsip_authenticator_digest"),
    *("res_pjsip_registrar", "res_pjsip_endpoint_identifier_user", "res_pjsip_endpoint_identifier_ip"),
    *(
        "res_pjsip_sdp_rtp",
        "res_pjsip_caller_id",
        "res_pjsip_header_funcs",
        "res_pjsip_nat",
        "res_pjsip_dtmf_info",
        "res_pjsip_rfc3326",
    ),
    *("res_pjsip_dlg_options", "res_pjsip_pubsub", "res_pjsip_transport_websocket", "chan_pjsip"),
    # codecs, files, bridges. Without bridge_native_rtp, which relays packets unread: keys pressed in an unrecorded
    # call of two would not be told. A recorded call never used it.
    *("codec_ulaw", "codec_alaw", "codec_a_mu", "codec_resample"),
    *("format_wav", "format_pcm", "format_sln"),
    *("bridge_simple", "bridge_softmix", "bridge_holding"),
    # live taps for speech to text
    *("res_audiosocket", "chan_audiosocket", "app_chanspy"),
    # what the dialplan and the engine use
    *("app_playback", "app_queue", "app_confbridge", "app_mixmonitor", "app_userevent", "app_record"),
    *("app_echo", "app_exec", "app_waitforcond", "res_cdrel_custom", "cel_custom"),
    *(
        "func_callerid",
        "func_channel",
        "func_cut",
        "func_global",
        "func_groupcount",
        "func_logic",
        "func_strings",
        "func_timeout",
    ),
)
#: Loaded where the machine's Asterisk has them; the first is Debian's, the second the vendor's binary.
OPTIONAL_MODULES = ("codec_opus_open_source", "codec_opus", "res_format_attr_opus")

_MARKER = "installed.json"
_NEEDED_BYTES = 1_200_000_000  # archives 110 MB and files 310 MB, with room for a later release
_UPDATE_SECONDS = 300
_DOWNLOAD_SECONDS = 1800
_UNPACK_SECONDS = 600
_LOCK_SECONDS = 2400
_KEYRINGS = (
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
)
_MIRROR = re.compile(
    r"(?:(?:https?|tor\+https?|mirror(?:\+(?:https?|file))?)://?|mirror\+file:/|file:/)[^\s\[\]\"']+"
)


class AsteriskUnavailable(Exception):  # noqa: N818  # a state, as in ami.py
    """No Asterisk can be had on this machine; the message says what to do about it."""


@dataclass(frozen=True, slots=True)
class AsteriskInstall:
    """An Asterisk that runs: how to start it and where its parts are."""

    command: tuple[str, ...]  # append Asterisk's own options
    version: str
    modules: Path
    documentation: Path  # Asterisk does not start without its XML documentation
    rest_api: Path
    music: Path
    sounds: Path  # English core sounds; `beep` comes from here

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    def has_module(self, name: str) -> bool:
        return (self.modules / f"{name}.so").is_file()


def ensure_asterisk(
    data_dir: Path, *, mirror: str | None = None, progress: Callable[[str], None] = lambda _: None
) -> AsteriskInstall:
    """Return the system's Asterisk where it fits, else the private one below `data_dir`, unpacking it if need be.

    `mirror` is the address of a Debian archive; without it the one in the machine's own apt configuration is used.
    Takes milliseconds when an Asterisk is there, about half a minute when it must be unpacked.
    Raises AsteriskUnavailable.
    """
    root = data_dir.resolve() / "asterisk-root"
    if found := _system_asterisk(progress) or _unpacked(root):
        return found
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with _only_one(root.with_suffix(".lock"), progress):
            return _unpacked(root) or _unpack(root, mirror=mirror, progress=progress)
    except OSError as error:
        raise AsteriskUnavailable(f"Cannot unpack Asterisk into {root}: {error}.") from error


def debian_mirror(*, release: str | None = None) -> str:
    """Return the Debian archive that this machine's apt is set to use; raises AsteriskUnavailable.

    apt itself reads its one-line and deb822 source files here, so every form it knows is understood.
    """
    _require_program("apt-get", "apt")
    listing = _run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"],
        seconds=30,
        what="read the machine's apt sources",
    )
    archives = [fields for line in listing.splitlines() if len(fields := line.split()) == 3]
    return _choose_mirror(archives, release or _debian_release())


def _choose_mirror(archives: Iterable[list[str]], release: str) -> str:
    """Prefer the archive that carries this machine's own release; updates and security archives carry no suite."""
    main = [
        (uri, suite)
        for uri, suite, component in archives
        if component == "main"
        and _MIRROR.fullmatch(uri)
        and not suite.endswith(("-security", "-updates", "-backports"))
        and "/updates" not in suite
    ]
    for uri, suite in sorted(main, key=lambda archive: archive[1] != release):
        if suite in {release, "stable", "testing", "unstable", "sid", SUITE}:
            return uri.rstrip("/")
    raise AsteriskUnavailable(
        "No Debian archive was found in this machine's apt sources. "
        "Install Asterisk 20 or newer, or set the address of a Debian mirror in the settings."
    )


def _debian_release() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
            if line.startswith("VERSION_CODENAME="):
                return line.partition("=")[2].strip().strip('"')
    return SUITE


# ---- the system's own


def _system_asterisk(progress: Callable[[str], None]) -> AsteriskInstall | None:
    binary = shutil.which("asterisk") or shutil.which("asterisk", path="/usr/sbin:/usr/local/sbin")
    if binary is None:
        return None
    try:
        version = _version_of((binary,))
    except AsteriskUnavailable as error:
        progress(
            f"{binary} 不能运行，改用自备的 Asterisk / does not run ({error}); a private Asterisk is used instead"
        )
        return None
    install = _describe((binary,), version, Path("/"))
    if install is None or install.major < OLDEST_MAJOR:
        progress(
            f"{binary} 版本 {version} 太旧或不完整，改用自备的 Asterisk / too old or incomplete; a private Asterisk is used instead"
        )
        return None
    return install


def _version_of(command: tuple[str, ...]) -> str:
    text = _run([*command, "-V"], seconds=10, what="ask Asterisk for its version").strip()
    found = re.search(r"(\d+\.\d+(?:\.\d+)*)", text)
    if found is None:
        raise AsteriskUnavailable(f"{command[-1]} -V answered {text[:60]!r}, which names no version.")
    return found[1]


def _describe(command: tuple[str, ...], version: str, root: Path) -> AsteriskInstall | None:
    """Locate Asterisk's parts below `root`; None when one that the instance needs is missing."""
    modules = _first_directory(
        [*sorted(root.glob("usr/lib/*/asterisk/modules")), root / "usr/lib/asterisk/modules"],
        containing="chan_pjsip.so",
    )
    shares = [root / "usr/share/asterisk", root / "var/lib/asterisk"]
    documentation = _first_directory([s / "documentation" for s in shares], containing="core-en_US.xml")
    rest_api = _first_directory([s / "rest-api" for s in shares], containing="resources.json")
    music = _first_directory([s / "moh" for s in shares], containing="*.wav")
    sounds = _first_directory(
        [s / "sounds" / language for s in shares for language in ("en_US_f_Allison", "en")],
        containing="beep.*",
    )
    if not (modules and documentation and rest_api and music and sounds):
        return None
    install = AsteriskInstall(command, version, modules, documentation, rest_api, music, sounds)
    return install if all(map(install.has_module, MODULES)) else None


def _first_directory(candidates: Iterable[Path], *, containing: str) -> Path | None:
    return next((path for path in candidates if path.is_dir() and any(path.glob(containing))), None)


# ---- the private one


def _unpacked(root: Path) -> AsteriskInstall | None:
    """The Asterisk already below `root`; the marker is written last, so a half-made one is never taken."""
    try:
        version = json.loads((root / _MARKER).read_text(encoding="utf-8"))["version"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return _describe(_private_command(root), str(version), root)


def _private_command(root: Path) -> tuple[str, ...]:
    """Run the packages' Asterisk through the packages' own linker and libraries, whatever the architecture."""
    for libraries in sorted(root.glob("usr/lib/*/asterisk/modules")):
        directory = libraries.parents[1]
        for pattern in ("ld-linux*.so.*", "ld64.so.*"):
            for linker in sorted(directory.glob(pattern)):
                binary = root / "usr/sbin/asterisk"
                return (str(linker), "--library-path", str(directory), "--argv0", "asterisk", str(binary))
    raise AsteriskUnavailable(f"{root} is incomplete. Delete it and start again.")


def _unpack(root: Path, *, mirror: str | None, progress: Callable[[str], None]) -> AsteriskInstall:
    _require_program("apt-get", "apt")
    _require_program("dpkg-deb", "dpkg")
    keyring = next((ring for ring in _KEYRINGS if Path(ring).is_file()), None)
    if keyring is None:
        raise AsteriskUnavailable(
            "The keys that sign Debian's packages are missing. Run: apt-get install debian-archive-keyring"
        )
    if mirror is not None and not _MIRROR.fullmatch(mirror):
        raise AsteriskUnavailable(f"{mirror!r} is not the address of a Debian mirror.")
    free = shutil.disk_usage(root.parent).free
    if free < _NEEDED_BYTES:
        raise AsteriskUnavailable(
            f"Unpacking Asterisk needs {_NEEDED_BYTES // 10**6} MB in {root.parent}, only {free // 10**6} MB are free."
        )
    for abandoned in root.parent.glob(f".{root.name}-*"):  # we hold the lock, so nobody is at work there
        shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
        archives = _download(Path(scratch), mirror or debian_mirror(), keyring, progress)
        new = Path(scratch) / "root"
        new.mkdir()
        progress(f"解开 {len(archives)} 个软件包 / unpacking {len(archives)} packages")
        for archive in archives:
            _run(
                ["dpkg-deb", "--extract", str(archive), str(new)],
                seconds=_UNPACK_SECONDS,
                what=f"unpack {archive.name}",
            )
        version = _version_of(_private_command(new))
        if _describe(_private_command(new), version, new) is None:
            raise AsteriskUnavailable(
                f"Debian's Asterisk {version} lacks a part this program needs. Please report this version."
            )
        (new / _MARKER).write_text(json.dumps({"version": version, "suite": SUITE}), encoding="utf-8")
        if root.exists():
            shutil.rmtree(root)
        new.rename(root)
    install = _unpacked(root)
    assert install is not None, "just described"  # noqa: S101  # the same directory a moment ago, renamed
    return install


def _download(scratch: Path, mirror: str, keyring: str, progress: Callable[[str], None]) -> list[Path]:
    """Fetch the packages and all they depend on with apt's own resolver and signatures, in a state of its own."""
    state, cache = scratch / "state", scratch / "cache"
    for directory in (state / "lists/partial", cache / "archives/partial"):
        directory.mkdir(parents=True)
    status, sources = state / "status", scratch / "sources.list"
    status.touch()
    architecture = _run(["dpkg", "--print-architecture"], seconds=10, what="ask for the architecture").strip()
    sources.write_text(
        f"deb [arch={architecture} signed-by={keyring}] {mirror} {SUITE} main\n", encoding="utf-8"
    )
    options = {
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": status,
        "Dir::Cache": cache,
        "Dir::Cache::archives": cache / "archives",
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "APT::Architectures": architecture,
        "APT::Default-Release": SUITE,
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root",  # no change of user, so that the data directory may be private
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "Acquire::http::Timeout": "30",
        "Acquire::https::Timeout": "30",
        "Debug::NoLocking": "1",
    }
    apt = ["apt-get", "-q", *(f"-o{name}={value}" for name, value in options.items())]
    progress(f"读取 Debian {SUITE} 的软件包目录 / reading the package lists of Debian {SUITE}")
    _run([*apt, "update", "--error-on=any"], seconds=_UPDATE_SECONDS, what="read Debian's package lists")
    progress("下载 Asterisk 及其程序库（约 110 MB）/ downloading Asterisk and its libraries (about 110 MB)")
    _run(
        [*apt, "install", "--yes", "--download-only", *PACKAGES],
        seconds=_DOWNLOAD_SECONDS,
        what="download Asterisk",
    )
    return sorted((cache / "archives").glob("*.deb"))


@contextlib.contextmanager
def _only_one(lock: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """Let one process at a time unpack; the kernel frees the lock when its holder dies."""
    deadline = time.monotonic() + _LOCK_SECONDS
    told = False
    with lock.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise AsteriskUnavailable(
                        f"Another process has held {lock} too long. Stop it first."
                    ) from error
                if not told:
                    progress(
                        "等待另一个正在解包的进程 / waiting for another process that is unpacking Asterisk"
                    )
                    told = True
                time.sleep(0.2)
        yield


def _require_program(program: str, package: str) -> None:
    if shutil.which(program) is None:
        raise AsteriskUnavailable(
            f"{program} was not found, so Debian's packages cannot be fetched. "
            f"Install Asterisk {OLDEST_MAJOR} or newer yourself, or run on Debian or a relative of it (package {package})."
        )


_REASONS = (
    ("No space left", "The disk is full. Free some space and start again."),
    ("NO_PUBKEY", "The Debian keys on this machine are too old. Run: apt-get install debian-archive-keyring"),
    (
        "Temporary failure resolving",
        "The network or its name service is down. Connect the machine and start again.",
    ),
    ("Could not resolve", "The mirror's name is unknown. Check the network and the mirror in apt's sources."),
    (
        "does not have a Release file",
        f"The mirror does not carry Debian {SUITE}. Set another mirror in the settings.",
    ),
    (
        "Could not connect",
        "The mirror does not answer. Check the network, a proxy or the mirror in apt's sources.",
    ),
    (
        "Connection timed out",
        "The mirror does not answer. Check the network, a proxy or the mirror in apt's sources.",
    ),
)


def _run(command: list[str], *, seconds: float, what: str) -> str:
    """Run a program to its end and return what it printed; its failure becomes one sentence with what to do."""
    try:
        done = subprocess.run(  # noqa: S603  # fixed programs; the one outside value, the mirror, is checked
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        )
    except subprocess.TimeoutExpired as error:
        raise AsteriskUnavailable(
            f"Could not {what} within {seconds:.0f} seconds. Check the network and start again."
        ) from error
    except OSError as error:
        raise AsteriskUnavailable(f"Could not {what}: {error}.") from error
    if done.returncode == 0:
        return done.stdout
    output = done.stdout + done.stderr
    for sign, advice in _REASONS:
        if sign in output:
            raise AsteriskUnavailable(f"Could not {what}. {advice}")
    last = next(
        (line for line in reversed(output.splitlines()) if line.strip()), f"exit status {done.returncode}"
    )
    raise AsteriskUnavailable(f"Could not {what}: {last.strip()}")
