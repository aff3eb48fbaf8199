"""Every setting of the program: one TOML file and the environment become one frozen ``Settings``.

The environment wins over the file, the file over the defaults. This is the only module that reads the environment.
The texts beside each setting are what `callcenter settings`, docs/operations.md and callcenter.toml.example show.
"""

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

DEFAULT_FILE = Path("callcenter.toml")
PREFIX = "CALLCENTER_"
FILE_VARIABLE = "CALLCENTER_CONFIG"


class SettingsError(Exception):
    """The settings cannot be used; each problem is one line that names its file and line, or its variable."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Profile(StrEnum):
    DEMO = "demo"
    PRODUCTION = "production"


class Tls(StrEnum):
    AUTO = "auto"
    ON = "on"
    OFF = "off"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    CONSOLE = "console"
    JSON = "json"


class ShutdownMode(StrEnum):
    DRAIN = "drain"
    HAND_OVER = "hand_over"
    NOW = "now"


def _setting(
    default: object,
    *,
    zh: str,
    en: str,
    unit: str = "",
    allowed: str = "",
    ge: float | None = None,
    le: float | None = None,
) -> Any:
    """A field with everything a person must know about it; `allowed` is derived where a range or choice says it."""
    if ge is not None:
        allowed = f"{ge:g}–{le:g}" if le is None or le < 1e6 else f"{ge:.0f}–{le:.0f}"
    elif isinstance(default, StrEnum):
        allowed = " | ".join(type(default))
    notes = {"zh": zh, "en": en, "unit": unit, "allowed": allowed}
    return Field(default, ge=ge, le=le, json_schema_extra=cast("dict[str, Any]", notes))


def _port(default: int, *, zh: str, en: str) -> Any:
    return _setting(default, zh=zh, en=en, ge=1, le=65535)


def _refuse() -> PydanticCustomError:
    """The error line says what is allowed, so the validator need not."""
    return PydanticCustomError("not_allowed", "not allowed")


def _not_empty(value: object) -> object:
    if value == "":
        raise _refuse()
    return value


def _absolute(path: Path) -> Path:
    return path.expanduser().resolve()


def _ip_address(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise _refuse() from None


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _networks(values: tuple[str, ...]) -> tuple[str, ...]:
    try:
        networks = [ipaddress.ip_network(value, strict=False) for value in values]
    except ValueError:
        raise _refuse() from None
    if any(network.prefixlen == 0 for network in networks):
        raise _refuse()  # the whole internet would be let in without registration
    return tuple(str(network) for network in networks)


def _host_and_port(value: str) -> str:
    match = re.fullmatch(r"([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:]{2,39}\]):([0-9]{1,5})", value)
    if not match or not 1 <= int(match[2]) <= 65535:
        raise _refuse()
    return value


def _matching(pattern: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise _refuse()
        return value

    return AfterValidator(check)


Directory = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(_absolute)]
FileName = Annotated[str, AfterValidator(lambda name: name and str(_absolute(Path(name))))]
IpAddress = Annotated[str, AfterValidator(_ip_address)]
Networks = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_networks)]
HostAndPort = Annotated[str, AfterValidator(_host_and_port)]
SystemName = Annotated[str, _matching(r"[a-z][a-z0-9]{0,15}")]
# The mirror becomes part of an apt source line: nothing may end the address early.
Mirror = Annotated[str, _matching(r"(?:(?:https?|file)://?[^\s\[\]\"'#]+)?")]
DatabaseUrl = Annotated[str, _matching(r"(?:(?:sqlite:///|postgresql://)\S+)?")]

_DIRECTORY = "目录 / a directory"
_FILE = "空，或文件 / empty, or a file"
_IP_ADDRESS = "本机的一个 IP 地址 / an IP address of this machine"


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class Http(Section):
    """网页与接口 / web and API"""

    bind: IpAddress = _setting(
        "127.0.0.1",
        zh="网页和接口监听的地址；0.0.0.0 为全部网卡",
        en="address the web server and API listen on; 0.0.0.0 is every interface",
        allowed=_IP_ADDRESS,
    )
    port: int = _port(8080, zh="网页和接口的 TCP 端口", en="TCP port of the web server and API")
    tls: Tls = _setting(
        Tls.AUTO,
        zh="是否用 https；auto 为监听本机以外的地址时用（浏览器只在 https 或本机网页上允许用麦克风）",
        en="whether https is spoken; auto: when bound to more than this machine "
        "(browsers give the microphone to https and to this machine's own pages only)",
    )
    certificate: FileName = _setting(
        "",
        zh="https 与 wss 的证书文件（PEM，含中间证书）；空为自动生成的自签名证书",
        en="certificate for https and wss (PEM, with intermediates); empty: a self-signed one is made",
        allowed=_FILE,
    )
    private_key: FileName = _setting(
        "",
        zh="该证书的私钥文件（PEM，不加密）；与证书一同设置",
        en="the certificate's private key (PEM, not encrypted); set together with it",
        allowed=_FILE,
    )

    @model_validator(mode="after")
    def _both_or_none(self) -> "Http":
        if bool(self.certificate) != bool(self.private_key):
            raise PydanticCustomError(
                "not_together", "http.certificate and http.private_key must be set together"
            )
        return self

    @property
    def speaks_tls(self) -> bool:
        return self.tls is Tls.ON or (
            self.tls is Tls.AUTO and not ipaddress.ip_address(self.bind).is_loopback
        )


class Sip(Section):
    """电话 / telephony"""

    bind: IpAddress = _setting(
        "127.0.0.1",
        zh="SIP 与语音监听的地址；话机在别的机器上时改为本机网卡地址或 0.0.0.0",
        en="address for SIP and voice; an interface's own address or 0.0.0.0 once phones are on other machines",
        allowed=_IP_ADDRESS,
    )
    port: int = _port(5060, zh="SIP 端口（UDP 与 TCP）", en="SIP port (UDP and TCP)")
    rtp_start: int = _setting(
        10000, zh="语音端口范围的第一个（UDP）", en="first UDP port for voice", ge=1024, le=65534
    )
    rtp_end: int = _setting(
        10999,
        zh="语音端口范围的最后一个（UDP）；每方通话占两个",
        en="last UDP port for voice; each leg takes two",
        ge=1025,
        le=65535,
    )
    max_calls: int = _setting(
        0,
        zh="同时在线的来电上限，超出的以 503 回给运营商；0 为语音端口够用的数目（每通来电按两方计）",
        en="callers at once, those beyond are answered 503 for the carrier to lead elsewhere; 0 is what the voice ports"
        " carry with two parties to a call",
        ge=0,
        le=15000,
    )
    trunk_addresses: Networks = _setting(
        ("127.0.0.1/32",),
        zh="中继线路的来源地址：这些地址打入的电话不需注册，其余一律须注册",
        en="where the trunk's calls come from: these are taken without registration, everybody else must register",
        allowed="以逗号分隔的地址或网段，不得为全网 / addresses or networks, comma-separated, never the whole internet",
    )
    trunk_contact: HostAndPort = _setting(
        "127.0.0.1:5062",
        zh="转接到外部号码（许可名单内）时呼叫的中继地址",
        en="the trunk's address for transfers to outside numbers of the allowed list",
        allowed="地址:端口 / host:port",
    )

    @property
    def callers_at_once(self) -> int:
        """``max_calls`` with its 0 worked out: four ports to a caller, two of them for whoever talks to him."""
        return self.max_calls or max(1, (self.rtp_end - self.rtp_start + 1) // 4)


class Asterisk(Section):
    """Asterisk"""

    ami_port: int = _port(5038, zh="AMI 的 TCP 端口，仅限本机", en="TCP port of AMI, on the loopback only")
    http_port: int = _port(
        8088, zh="浏览器话机 ws 的 TCP 端口", en="TCP port of ws for telephones in the browser"
    )
    https_port: int = _port(
        8089, zh="浏览器话机 wss 的 TCP 端口", en="TCP port of wss for telephones in the browser"
    )
    system_name: SystemName = _setting(
        "ast1",
        zh="本机 Asterisk 的名字，是每个通话编号的开头；多台时不得重复",
        en="name of this Asterisk, the head of every call id; unique where there are several",
        allowed="小写字母开头，小写字母与数字，至多 16 位 / a lower-case letter, then letters and digits, 16 at most",
    )
    mirror: Mirror = _setting(
        "",
        zh="取 Asterisk 安装包的 Debian 镜像；空为本机 apt 所用的镜像",
        en="Debian mirror for Asterisk's packages; empty is the one this machine's apt uses",
        allowed="空，或 http(s)/file 网址 / empty, or an http(s) or file address",
    )
    hung_seconds: float = _setting(
        30.0,
        zh="Asterisk 卡死（AMI 与自身控制台都不应答）多久后杀掉重启，其通话随之结束",
        en="how long Asterisk may be hung (neither AMI nor its own console answers) before it is killed and started "
        "again, which ends its calls",
        unit="s",
        ge=3,
        le=600,
    )


class Recordings(Section):
    """录音 / recordings"""

    dir: Directory = _setting(
        "./recordings",
        zh="录音目录，其下为 年/月/日/通话编号",
        en="recordings, below it year/month/day/call id",
        allowed=_DIRECTORY,
    )


class Flows(Section):
    """语音流程 / flows"""

    dir: Directory = _setting(
        "./ivr_flows",
        zh="语音流程目录，每条专线一个 YAML 文件",
        en="flows, one YAML file a line",
        allowed=_DIRECTORY,
    )


class DatabaseSettings(Section):
    """数据库 / database"""

    url: DatabaseUrl = _setting(
        "",
        zh="数据库地址；空为数据目录中的 SQLite 文件 callcenter.db",
        en="database; empty is the SQLite file callcenter.db in the data directory",
        allowed="空，sqlite:///路径，或 postgresql://用户:密码@主机/库 / "
        "empty, sqlite:///path or postgresql://user:password@host/name",
    )


class Session(Section):
    """登录 / logins"""

    hours: float = _setting(
        12.0,
        zh="登录后无操作多久须重新登录",
        en="idle time after which one logs in again",
        unit="h",
        ge=0.1,
        le=168,
    )
    max_failures: int = _setting(
        5,
        zh="密码连续输错多少次即锁定",
        en="wrong passwords in a row before the account is locked",
        ge=1,
        le=100,
    )
    lock_seconds: float = _setting(
        300.0, zh="锁定多久", en="how long it stays locked", unit="s", ge=1, le=86400
    )


class Security(Section):
    """入侵防护 / attempts to get in"""

    max_failures: int = _setting(
        30,
        zh="同一地址在下一项的时间内失败多少次（SIP、网页登录合计）即封禁；话机被要求密码 20 次算一次",
        en="failures (SIP and web logins together) from one address within the next setting before it is shut out;"
        " being asked for a password 20 times counts as one",
        ge=3,
        le=10000,
    )
    within_seconds: float = _setting(300.0, zh="在多长时间内", en="within how long", unit="s", ge=1, le=86400)
    ban_seconds: float = _setting(
        3600.0, zh="封禁多久，到时自动解除", en="how long it is shut out", unit="s", ge=1, le=2_592_000
    )
    never_ban: Networks = _setting(
        ("127.0.0.1/32", "::1/128"),
        zh="从不封禁、只告警的地址；中继地址和有话机在册的地址也从不封禁。反向代理的地址写在这里",
        en="never shut out, alarmed only; so are the trunk's addresses and those our phones are registered from."
        " A reverse proxy belongs here",
        allowed="以逗号分隔的地址或网段，不得为全网 / addresses or networks, comma-separated, never the whole internet",
    )


class JournalSettings(Section):
    """记账 / journal"""

    capacity: int = _setting(
        10000,
        zh="数据库中断时内存里最多存放多少条待写记录，再多写入数据目录中的文件",
        en="records kept in memory while the database is away; more go to a file in the data directory",
        ge=100,
        le=1000000,
    )


class Log(Section):
    """日志 / log"""

    level: LogLevel = _setting(LogLevel.INFO, zh="记到多细", en="how much is logged")
    format: LogFormat = _setting(
        LogFormat.CONSOLE,
        zh="console 给人看，json 给日志系统（每行一条）",
        en="console for people, json for log systems (one object a line)",
    )


class Disk(Section):
    """磁盘 / disk"""

    min_free_mb: int = _setting(
        500,
        zh="录音与数据所在磁盘的剩余空间低于此数时 /healthz 报 degraded（仍可用，须有人看）",
        en="/healthz says degraded (it works, somebody must look) when the disk of data or recordings has less than this",
        unit="MB",
        ge=1,
        le=100_000_000,
    )


class Shutdown(Section):
    """停机 / shutdown"""

    mode: ShutdownMode = _setting(
        ShutdownMode.DRAIN,
        zh="收到 SIGTERM 时：drain 不再接新来电，把在线和排队的服务完；hand_over 只停引擎，通话继续，由新引擎接管；now 立即结束全部通话",
        en="on SIGTERM: drain takes no new calls and serves those there to their end; hand_over leaves Asterisk and its calls to "
        "the next engine; now ends every call",
    )
    drain_seconds: float = _setting(
        60,
        unit="s",
        ge=1,
        le=7200,
        zh="drain 最多等多久，然后结束剩余通话",
        en="how long drain waits at most before it ends the calls that are left",
    )


class Settings(BaseSettings):
    """Everything that is set, checked; paths are absolute."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        env_prefix=PREFIX,
        env_nested_delimiter="__",
    )

    data_dir: Directory = _setting(
        "./var",
        zh="数据目录：数据库、Asterisk 实例与程序自己的文件",
        en="data: the database, the Asterisk instance and the program's own files",
        allowed=_DIRECTORY,
    )
    profile: Profile = _setting(
        Profile.DEMO,
        zh="demo 带示范用户和号码；production 有演示密码时拒绝启动",
        en="demo has users and numbers to try; production does not start while a demo password is left",
    )
    demo_beyond_this_machine: bool = _setting(
        False,
        zh="demo 的密码人人皆知：http.bind 或 sip.bind 为非本机地址时拒绝启动，除非设为 true",
        en="everybody knows the demo's passwords: it does not start on an address other machines can reach unless this"
        " is true",
        allowed="true | false",
    )
    http: Http = Field(default_factory=Http)
    sip: Sip = Field(default_factory=Sip)
    asterisk: Asterisk = Field(default_factory=Asterisk)
    recordings: Recordings = Field(default_factory=Recordings)
    flows: Flows = Field(default_factory=Flows)
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    session: Session = Field(default_factory=Session)
    security: Security = Field(default_factory=Security)
    journal: JournalSettings = Field(default_factory=JournalSettings)
    log: Log = Field(default_factory=Log)
    disk: Disk = Field(default_factory=Disk)
    shutdown: Shutdown = Field(default_factory=Shutdown)

    @property
    def open_demo(self) -> bool:
        """Whether other machines could log in with passwords that everybody knows, and nobody said that they may."""
        reachable = any(
            not ipaddress.ip_address(each).is_loopback for each in (self.http.bind, self.sip.bind)
        )
        return self.profile is Profile.DEMO and reachable and not self.demo_beyond_this_machine

    @property
    def database_url(self) -> str:
        return self.database.url or f"sqlite:///{self.data_dir / 'callcenter.db'}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings  # the file's content comes as keywords

    @model_validator(mode="after")
    def _ports_do_not_collide(self) -> "Settings":
        rtp = range(self.sip.rtp_start, self.sip.rtp_end + 1)
        if len(rtp) < 10:
            raise _conflict("sip.rtp_end", "语音端口至少要 10 个 / at least 10 ports for voice are needed")
        if self.sip.max_calls > len(rtp) // 4:
            raise _conflict(
                "sip.max_calls",
                f"{len(rtp)} 个语音端口只够 {len(rtp) // 4} 通来电（每通按两方、四个端口），请放宽 sip.rtp_start–sip.rtp_end / "
                f"{len(rtp)} ports for voice carry {len(rtp) // 4} callers (two parties, four ports each): widen them",
            )
        taken: dict[int, str] = {}
        for name in (
            "sip.port",
            "http.port",
            "asterisk.ami_port",
            "asterisk.http_port",
            "asterisk.https_port",
        ):
            port = getattr(getattr(self, name.split(".")[0]), name.split(".")[1])
            if other := taken.get(port):
                raise _conflict(name, f"端口 {port} 已用于 {other} / port {port} is already used by {other}")
            taken[port] = name
        if self.sip.port in rtp:
            raise _conflict("sip.port", "落在语音端口范围内 / lies within the range of ports for voice")
        return self


def _conflict(setting: str, sentence: str) -> PydanticCustomError:
    return PydanticCustomError("conflict", "{sentence}", {"setting": setting, "sentence": sentence})


@dataclass(frozen=True, slots=True)
class Explained:
    """One setting as a person reads about it."""

    name: str
    variable: str
    value: str
    source: str
    """`default`, the file with its line, or `environment`."""
    default: str
    unit: str
    allowed: str
    zh: str
    en: str


def load_settings(file: Path | None = None) -> Settings:
    """Read `file`, or whichever ``settings_file`` finds, and the environment.

    Raises SettingsError with every problem found.
    """
    return _read(file)[0]


def settings_file(file: Path | None = None) -> Path | None:
    """The file that counts: this one, what CALLCENTER_CONFIG names, or ./callcenter.toml if there is one."""
    named = file or (Path(os.environ[FILE_VARIABLE]) if os.environ.get(FILE_VARIABLE) else None)
    return named or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)


def explain_settings(file: Path | None = None) -> list[Explained]:
    """Every setting with its value now and where that comes from; raises SettingsError."""
    settings, origins = _read(file)
    return _explain(settings, origins)


def explain_defaults() -> list[Explained]:
    """Every setting as the documentation shows it, whatever this machine sets."""
    return _explain(None, {})


def section_titles() -> dict[str, str]:
    """Section -> its title, in the order of the documentation; the settings outside a section come first."""
    titles = {
        name: (model.__doc__ or "").strip() for name, field in _top_level() if (model := _section(field))
    }
    return {"": "总体 / general"} | titles


def _explain(settings: Settings | None, origins: Mapping[str, str]) -> list[Explained]:
    rows = []
    for name, field in _leaves():
        default = _text(field.default)
        value = settings and _value(settings, name)
        notes = cast("dict[str, str]", field.json_schema_extra)
        rows.append(
            Explained(
                name=name,
                variable=_variable(name),
                value=_text(value) if settings else default,
                source=origins.get(name, "default"),
                default=default,
                unit=notes["unit"],
                allowed=notes["allowed"],
                zh=notes["zh"],
                en=notes["en"],
            )
        )
    return rows


def _top_level() -> Iterator[tuple[str, FieldInfo]]:
    yield from Settings.model_fields.items()


def _section(field: FieldInfo) -> type[Section] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _leaves() -> Iterator[tuple[str, FieldInfo]]:
    for name, field in _top_level():
        if section := _section(field):
            yield from ((f"{name}.{key}", leaf) for key, leaf in section.model_fields.items())
        else:
            yield name, field


def _variable(name: str) -> str:
    return PREFIX + name.upper().replace(".", "__")


def _value(settings: Settings, name: str) -> object:
    section, _, key = name.rpartition(".")
    return getattr(getattr(settings, section) if section else settings, key)


def _text(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return re.sub(r"(://[^/:@\s]*):[^@\s]*@", r"\1:***@", str(value))  # a database password stays unread


def _read(file: Path | None) -> tuple[Settings, dict[str, str]]:
    names = [name for name, _ in _leaves()]
    variables = {name: key for name in names for key in os.environ if key.upper() == _variable(name)}
    unknown = _unknown_variables(names)
    document, path, lines = _read_file(file)
    origins: dict[str, str] = {}
    for name in names:
        if name in variables:
            origins[name] = "environment"
        elif path and (line := lines.get(name)):
            origins[name] = f"{path}:{line}"
    try:
        settings = Settings(**document)
    except ValidationError as error:
        named = {problem.partition(":")[0] for problem in unknown}
        problems = [
            _problem(details, names, variables, path, lines)
            for details in error.errors()
            if _variable(".".join(map(str, details["loc"]))) not in named  # told already, by its variable
        ]
        raise SettingsError((*unknown, *problems)) from error
    if unknown:
        raise SettingsError(tuple(unknown))
    return settings, origins


def _unknown_variables(names: list[str]) -> list[str]:
    known = {_variable(name) for name in names} | {FILE_VARIABLE}
    return [
        f"{key}: 没有这个设置 / no such setting{_nearest(key.upper(), known)}"
        for key in sorted(os.environ)
        if key.upper().startswith(PREFIX) and key.upper() not in known
    ]


def _nearest(word: str, known: set[str]) -> str:
    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f"；是否要写 / did you mean {near[0]}?" if near else "；`callcenter settings`"


def _read_file(file: Path | None) -> tuple[dict[str, Any], str, dict[str, int]]:
    """The file's content, its name as shown, and the line of each dotted key."""
    path = settings_file(file)
    if path is None:
        return {}, "", {}
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a mark at the head
        return tomllib.loads(text), str(path), _lines(text)
    except UnicodeDecodeError as error:
        problem = f"{path}: 不是 UTF-8 编码，请另存为 UTF-8 / not UTF-8: save it as UTF-8"
        raise SettingsError((problem,)) from error
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"line (\d+)", str(error))
        number = place[1] if place else str(text.count("\n") + 1)  # "at end of document"
        raise SettingsError((f"{path}:{number}: 不是正确的 TOML / not valid TOML: {error}",)) from error
    except OSError as error:
        problem = f"{path}: 读不到设置文件 / the settings file cannot be read: {error.strerror}"
        raise SettingsError((problem,)) from error


_HEADER = re.compile(r"\s*\[\[?([^\[\]]+)\]")
_KEY = re.compile(r"\s*([\w.\"' -]+?)\s*=")


def _lines(text: str) -> dict[str, int]:
    """Dotted key -> line. tomllib keeps no positions; the settings need no more of TOML than headers and keys."""
    found: dict[str, int] = {}
    section: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            section = _parts(header[1])
            found.setdefault(".".join(section), number)
        elif key := _KEY.match(line):
            found.setdefault(".".join([*section, *_parts(key[1])]), number)
    return found


def _parts(key: str) -> list[str]:
    return [part.strip().strip("\"'") for part in key.split(".")]


def _problem(
    details: ErrorDetails, names: list[str], variables: dict[str, str], path: str, lines: dict[str, int]
) -> str:
    location = [str(part) for part in details["loc"]]
    name = str(details.get("ctx", {}).get("setting", "")) or ".".join(location)
    while name not in names and name not in lines and "." in name:
        name = name.rpartition(".")[0]  # an item of a list, or a key of an inline table
    where = variables.get(name) or _place(name, path, lines)
    if details["type"] == "conflict":
        return f"{where}: {name}: {details['msg']}"
    if name in names:
        allowed = {row.name: row.allowed for row in explain_defaults()}[name]
        return f"{where}: {name} = {_text(details['input']) or '(empty)'}: 应为 / must be {allowed}"
    if details["type"] == "extra_forbidden":
        wrong = ".".join(location)
        known = {*names, *(section for section in section_titles() if section)}
        return f"{where}: {wrong}: 没有这个设置 / no such setting{_nearest(wrong, known)}"
    return f"{where}: {name}: 这是一节，写作 / this is a section, written [{name}]"


def _place(name: str, path: str, lines: dict[str, int]) -> str:
    if not path:
        return "默认设置 / defaults"
    while name and name not in lines:
        name = name.rpartition(".")[0]
    return f"{path}:{lines[name]}" if name else path
