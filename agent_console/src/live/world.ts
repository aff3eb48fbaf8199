/** What the centre has told this screen, and how each message changes it. No clock, no socket: messages in, a world out. */
import type { components } from '@/generated/wire'

type Schemas = components['schemas']
export type ServerMessage = Schemas['ServerMessage']
export type ClientMessage = Schemas['ClientMessage']
export type Snapshot = Schemas['Snapshot']
export type AgentView = Schemas['AgentView']
export type AgentState = AgentView['state']
export type CallView = Schemas['CallView']
export type LegView = Schemas['LegView']
export type StepView = Schemas['StepView']
export type QueueView = Schemas['QueueView']
export type MeView = Schemas['MeView']
export type Right = MeView['rights'][number]
export type DirectoryView = Schemas['DirectoryView']
export type AlarmRaised = Schemas['AlarmRaised']
export type RefusedMessage = Schemas['RefusedMessage']

const ALARMS_KEPT = 50
const ENDED_KEPT = 20

export interface World {
  /** Of the last change seen; the next one must be one more. */
  readonly seq: number
  readonly me: MeView
  readonly agents: Readonly<Record<string, AgentView>>
  readonly queues: readonly QueueView[]
  /** Living calls. */
  readonly calls: Readonly<Record<string, CallView>>
  /** Records of calls that ended before this screen's eyes, the latest last. */
  readonly ended: readonly CallView[]
  readonly directory: DirectoryView
  /** The newest first. */
  readonly alarms: readonly AlarmRaised[]
  /** Milliseconds to add to this computer's clock to get the server's. */
  readonly clockOffset: number
}

export type Change = Exclude<
  ServerMessage,
  Snapshot | Schemas['Pong'] | Schemas['Done'] | Schemas['RefusedMessage']
>

/** The world a snapshot draws; alarms are no part of it and are kept. */
export function drawn(snapshot: Snapshot, before: World | null, now: number): World {
  const mine = snapshot.my_call
  return {
    seq: snapshot.seq,
    me: snapshot.me,
    agents: Object.fromEntries(snapshot.agents.map((agent) => [agent.user_id, agent])),
    queues: snapshot.queues,
    calls: Object.fromEntries(snapshot.calls.map((call) => [call.call_id, call])),
    ended: mine?.phase === 'ended' ? [mine] : [],
    directory: snapshot.directory,
    alarms: before?.alarms ?? [],
    clockOffset: Date.parse(snapshot.server_time) - now,
  }
}

/** The world after a change, or null where one was missed: then only a new snapshot tells the truth. */
export function changed(world: World, change: Change): World | null {
  if (change.seq <= world.seq) return world // seen already
  if (change.seq !== world.seq + 1) return null
  const next = { ...world, seq: change.seq }
  switch (change.type) {
    case 'call':
      return { ...next, calls: newer(world.calls, change.call) }
    case 'call_ended': {
      const calls = Object.fromEntries(Object.entries(world.calls).filter(([id]) => id !== change.call_id))
      return { ...next, calls, ended: change.call ? kept(world.ended, change.call) : world.ended }
    }
    case 'agent': {
      const agent = change.agent
      const agents = { ...world.agents, [agent.user_id]: agent }
      const me = agent.user_id === world.me.user_id ? { ...world.me, agent } : world.me
      return { ...next, agents, me, directory: withPresence(world.directory, agent) }
    }
    case 'queue': {
      const known = world.queues.some((queue) => queue.queue_id === change.queue.queue_id)
      const queues = known
        ? world.queues.map((queue) => (queue.queue_id === change.queue.queue_id ? change.queue : queue))
        : [...world.queues, change.queue]
      return { ...next, queues }
    }
    case 'alarm':
      return { ...next, alarms: [change, ...world.alarms].slice(0, ALARMS_KEPT) }
  }
}

function newer(calls: World['calls'], call: CallView): World['calls'] {
  const known = calls[call.call_id]
  return known && known.version > call.version ? calls : { ...calls, [call.call_id]: call }
}

function kept(ended: readonly CallView[], call: CallView): readonly CallView[] {
  return [...ended.filter((each) => each.call_id !== call.call_id), call].slice(-ENDED_KEPT)
}

function withPresence(directory: DirectoryView, agent: AgentView): DirectoryView {
  if (!directory.specialists.some((each) => each.user_id === agent.user_id)) return directory
  const { state, phone_reachable } = agent
  return {
    ...directory,
    specialists: directory.specialists.map((each) =>
      each.user_id === agent.user_id ? { ...each, state, phone_reachable } : each,
    ),
  }
}

/** The call in hand, or the ended one that is being wrapped up. */
export function myCall(world: World): CallView | null {
  const id = world.me.agent?.call_id
  if (!id) return null
  return world.calls[id] ?? world.ended.find((each) => each.call_id === id) ?? null
}

/** One's own living leg. */
export function myLeg(world: World, call: CallView): LegView | null {
  return call.legs.find((leg) => leg.user_id === world.me.user_id && leg.state !== 'ended') ?? null
}

export function livingLegs(call: CallView): LegView[] {
  return call.legs.filter((leg) => leg.state !== 'ended')
}
