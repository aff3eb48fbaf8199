import { describe, expect, it } from 'vitest'
import { agent, call, leg, queue, snapshot } from './examples'
import { changed, drawn, livingLegs, myCall, myLeg, type Change, type World } from './world'

const NOW = Date.parse('2026-11-21T04:00:05Z')
const before = drawn(snapshot(), null, NOW)

function after(...changes: Change[]): World {
  return changes.reduce<World>((world, change) => {
    const next = changed(world, change)
    if (!next) throw new Error(`a gap before ${String(change.seq)}`)
    return next
  }, before)
}

describe('a snapshot', () => {
  it('replaces everything but the alarms', () => {
    const alarmed = after({ type: 'alarm', seq: 2, at: '2026-11-21T04:00:00Z', key: 'trunk_away', facts: {} })
    const again = drawn(snapshot({ seq: 9, queues: [] }), alarmed, NOW)
    expect(again).toMatchObject({ seq: 9, queues: [] })
    expect(again.alarms).toHaveLength(1)
  })

  it('tells how wrong the clock of this computer is', () => {
    expect(before.clockOffset).toBe(-5000)
  })

  it('brings the ended call that is being wrapped up', () => {
    const ended = call({ call_id: 'x', phase: 'ended' })
    const me = { ...snapshot().me, agent: agent({ state: 'wrap_up', call_id: 'x' }) }
    const world = drawn(snapshot({ me, my_call: ended }), null, NOW)
    expect(myCall(world)).toEqual(ended)
    expect(world.calls).toEqual({})
  })
})

describe('a change', () => {
  it('is one more than the last, or the screen must ask', () => {
    expect(changed(before, { type: 'queue', seq: 3, queue: queue() })).toBeNull()
    expect(changed(before, { type: 'queue', seq: 2, queue: queue({ waiting: 4 }) })?.queues[0]?.waiting).toBe(
      4,
    )
  })

  it('that was seen before changes nothing', () => {
    expect(changed(before, { type: 'call', seq: 1, call: call() })).toBe(before)
  })

  it('never puts an older state of a call in the place of a newer one', () => {
    const world = after(
      { type: 'call', seq: 2, call: call({ version: 7, note: 'new' }) },
      { type: 'call', seq: 3, call: call({ version: 6, note: 'old' }) },
    )
    expect(world.calls['a']?.note).toBe('new')
    expect(world.seq).toBe(3)
  })

  it('of my own state is also mine', () => {
    const world = after({ type: 'agent', seq: 2, agent: agent({ state: 'not_ready', reason: 'meal' }) })
    expect(world.me.agent?.state).toBe('not_ready')
    expect(world.agents['agent1']?.reason).toBe('meal')
  })

  it('of a specialist is seen in the directory', () => {
    const spec = agent({ user_id: 'spec1', state: 'ready', phone_reachable: true })
    const world = after({ type: 'agent', seq: 2, agent: spec })
    expect(world.directory.specialists[0]).toMatchObject({ state: 'ready', phone_reachable: true })
    expect(world.me.agent?.state).toBe('ready')
  })

  it('adds a queue nobody knew', () => {
    const world = after({ type: 'queue', seq: 2, queue: queue({ queue_id: 'company' }) })
    expect(world.queues).toHaveLength(2)
  })
})

describe('my call', () => {
  it('stays while I wrap it up, with what its record became, and is gone after', () => {
    const talking = after(
      { type: 'call', seq: 2, call: call() },
      { type: 'agent', seq: 3, agent: agent({ state: 'talking', call_id: 'a' }) },
    )
    expect(myCall(talking)?.phase).toBe('talking')
    const ended = call({ version: 9, phase: 'ended', ticket_number: '20261121-000001' })
    const steps: Change[] = [
      { type: 'call_ended', seq: 4, call_id: 'a', call: call({ version: 8, phase: 'ended' }) },
      { type: 'agent', seq: 5, agent: agent({ state: 'wrap_up', call_id: 'a' }) },
      { type: 'call_ended', seq: 6, call_id: 'a', call: ended },
    ]
    const wrapping = steps.reduce<World | null>((world, each) => world && changed(world, each), talking)
    expect(wrapping && myCall(wrapping)).toEqual(ended)
    expect(wrapping?.calls).toEqual({})
    expect(wrapping?.ended).toHaveLength(1)
    const done = wrapping && changed(wrapping, { type: 'agent', seq: 7, agent: agent() })
    expect(done && myCall(done)).toBeNull()
  })

  it('has my living leg and everybody else who is still there', () => {
    const conference = call({
      legs: [
        leg({ leg_id: 'a', role: 'caller', user_id: null }),
        leg({ leg_id: 'a-2', state: 'ended' }),
        leg({ leg_id: 'a-3' }),
        leg({ leg_id: 'a-4', user_id: 'spec1', state: 'ringing' }),
      ],
    })
    expect(myLeg(before, conference)?.leg_id).toBe('a-3')
    expect(livingLegs(conference).map((each) => each.leg_id)).toEqual(['a', 'a-3', 'a-4'])
  })
})
