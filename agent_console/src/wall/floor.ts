/** What a team leader looks at, reckoned from what the centre has told. */
import type { AgentState, AgentView, World } from '@/live/world'

export const STATES: readonly AgentState[] = [
  'ready',
  'offered',
  'talking',
  'held',
  'wrap_up',
  'not_ready',
  'logged_out',
]

export interface Floor {
  waiting: number
  longestSince: string | null
  calls: number
  staffed: number
  by: Record<AgentState, number>
}

export function floorOf(world: World): Floor {
  const by = Object.fromEntries(STATES.map((state) => [state, 0])) as Record<AgentState, number>
  const agents = seated(world)
  for (const agent of agents) by[agent.state] += 1
  const since = world.queues.flatMap((queue) =>
    queue.waiting > 0 && queue.longest_wait_since ? [queue.longest_wait_since] : [],
  )
  return {
    waiting: world.queues.reduce((sum, queue) => sum + queue.waiting, 0),
    longestSince: since.sort()[0] ?? null,
    calls: Object.values(world.calls).filter((call) => call.phase === 'talking').length,
    staffed: agents.length - by.logged_out,
    by,
  }
}

/** Those who take calls from queues. */
export function seated(world: World): AgentView[] {
  return Object.values(world.agents).filter((agent) => agent.roles.includes('agent'))
}

/** Those in whose state it shows that something is to be done come first. */
export function ordered(agents: readonly AgentView[]): AgentView[] {
  return [...agents].sort(
    (a, b) => STATES.indexOf(a.state) - STATES.indexOf(b.state) || a.name.localeCompare(b.name, 'zh'),
  )
}

/** Longer in this state than is usual; a leader looks there. Milliseconds. */
const LONG: Partial<Record<AgentState, number>> = {
  talking: 10 * 60_000,
  held: 2 * 60_000,
  wrap_up: 2 * 60_000,
  not_ready: 30 * 60_000,
}

export function tooLong(agent: AgentView, now: number): boolean {
  const bound = LONG[agent.state]
  return bound !== undefined && agent.since !== null && now - Date.parse(agent.since) > bound
}

export type Level = 'calm' | 'warn' | 'bad'

/** Colour only at thresholds. */
export function levelOf(figure: 'waiting' | 'longest', value: number): Level {
  const [warn, bad] = figure === 'waiting' ? [3, 10] : [15_000, 60_000]
  return value >= bad ? 'bad' : value >= warn ? 'warn' : 'calm'
}
