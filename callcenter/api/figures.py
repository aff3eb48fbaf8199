"""The service's own figures for Prometheus, and its health: how it is now, asked at most once a second."""

import asyncio
from collections import Counter as Counts
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from callcenter.api.ports import Component, EnginePort, HealthSource, Standing
from callcenter.api.views import HealthView, health_view
from callcenter.domain.agents import AgentState
from callcenter.domain.calls import Call, CallId, Phase

COMPONENTS = ("asterisk", "ami", "database", "disk")
_REMEMBERED_ENDS = 10_000
_LAG_EVERY_SECONDS = 0.5


class Health:
    """Asks every component with a deadline; many askers share one answer, since anybody may ask without login."""

    def __init__(self, source: HealthSource, *, deadline_seconds: float, fresh_seconds: float = 1.0) -> None:
        self._source = source
        self._deadline_seconds = deadline_seconds
        self._fresh_seconds = fresh_seconds
        self._asked_at = float("-inf")
        self._asking = asyncio.Lock()
        self._last: Mapping[str, Component] = {}

    async def view(self) -> HealthView:
        async with self._asking:
            loop = asyncio.get_running_loop()
            if loop.time() - self._asked_at >= self._fresh_seconds:
                self._last = await self._ask()
                self._asked_at = loop.time()
        return health_view({name: (each.standing, each.detail) for name, each in self._last.items()})

    async def _ask(self) -> Mapping[str, Component]:
        try:
            async with asyncio.timeout(self._deadline_seconds):
                return await self._source.components()
        except TimeoutError:
            silent = Component(Standing.DOWN, f"did not say how it is within {self._deadline_seconds:g} s")
            return dict.fromkeys(COMPONENTS, silent)


class Figures(Collector):
    """Counters kept here, and gauges read from the engine each time somebody asks."""

    def __init__(self, *, engine: EnginePort, health: HealthSource, screens: Callable[[], int]) -> None:
        self._engine = engine
        self._health = health
        self._screens = screens
        self._components: Mapping[str, Standing] = {}
        self._ended: OrderedDict[CallId, None] = OrderedDict()
        self.registry = CollectorRegistry()
        self._calls_ended = Counter(
            "callcenter_calls_ended", "Calls ended, by reason", ["reason"], registry=self.registry
        )
        self._logins_refused = Counter(
            "callcenter_login_failures", "Logins refused, by reason", ["reason"], registry=self.registry
        )
        self._commands = Counter(
            "callcenter_commands", "Commands of users, by result", ["result"], registry=self.registry
        )
        self._lag = Histogram(
            "callcenter_event_loop_lag_seconds",
            "How much later than asked the event loop wakes up",
            buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
            registry=self.registry,
        )
        self.registry.register(self)

    def call_ended(self, call: Call) -> None:
        """Count it once, however often the ended call is saved again (disposition, ticket number)."""
        if call.call_id in self._ended or call.end_reason is None:
            return
        self._ended[call.call_id] = None
        if len(self._ended) > _REMEMBERED_ENDS:
            self._ended.popitem(last=False)
        self._calls_ended.labels(call.end_reason.value).inc()

    def login_refused(self, reason: str) -> None:
        self._logins_refused.labels(reason).inc()

    def command(self, result: str) -> None:
        """``done``, or the stable word of the refusal."""
        self._commands.labels(result).inc()

    async def watch_the_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            asked = loop.time()
            await asyncio.sleep(_LAG_EVERY_SECONDS)
            self._lag.observe(max(0.0, loop.time() - asked - _LAG_EVERY_SECONDS))

    def text(self, health: HealthView) -> bytes:
        self._components = {name: each.standing for name, each in health.components.items()}
        return generate_latest(self.registry)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        calls = GaugeMetricFamily("callcenter_calls", "Living calls, by phase", labels=["phase"])
        phases = Counts(call.phase for call in self._engine.calls.values())
        for phase in Phase:
            if phase is not Phase.ENDED:
                calls.add_metric([phase.value], phases[phase])
        yield calls
        agents = GaugeMetricFamily("callcenter_agents", "Agents, by state", labels=["state"])
        states = Counts(agent.state for agent in self._engine.agents.values())
        for state in AgentState:
            agents.add_metric([state.value], states[state])
        yield agents
        waiting = GaugeMetricFamily("callcenter_queue_waiting", "Callers waiting", labels=["queue"])
        longest = GaugeMetricFamily(
            "callcenter_queue_longest_wait_seconds", "How long the first has waited", labels=["queue"]
        )
        ready = GaugeMetricFamily("callcenter_queue_ready", "Agents ready for the queue", labels=["queue"])
        for load in self._engine.queue_status():
            waiting.add_metric([load.queue_id], load.waiting)
            longest.add_metric([load.queue_id], load.longest_wait_seconds)
            ready.add_metric([load.queue_id], load.ready)
        yield from (waiting, longest, ready)
        up = GaugeMetricFamily(
            "callcenter_component_up", "1 ok, 0.5 degraded, 0 down, by component", labels=["component"]
        )
        worth = {Standing.OK: 1.0, Standing.DEGRADED: 0.5, Standing.DOWN: 0.0}
        for name, standing in self._components.items():
            up.add_metric([name], worth[standing])
        yield up
        ami = self._components.get("ami")
        yield GaugeMetricFamily(
            "callcenter_ami_up", "Whether the telephony answers", value=float(ami is Standing.OK)
        )
        yield GaugeMetricFamily(
            "callcenter_journal_pending",
            "Changes not yet in the database",
            value=float(self._health.journal_pending),
        )
        yield GaugeMetricFamily("callcenter_screens", "Consoles connected", value=float(self._screens()))
