import { describe, expect, it } from 'vitest'
import { agent, call, queue, snapshot } from '@/live/examples'
import { drawn } from '@/live/world'
import { floorOf, levelOf, ordered, tooLong } from './floor'

const NOON = '2026-11-21T04:00:00Z'
const LATER = '2026-11-21T04:00:30Z'

describe('the floor', () => {
  const world = drawn(
    snapshot({
      agents: [
        agent(),
        agent({ user_id: 'agent2', state: 'logged_out' }),
        agent({ user_id: 'agent3', state: 'talking', call_id: 'a' }),
        agent({ user_id: 'spec1', roles: ['specialist'] }),
      ],
      queues: [
        queue({ waiting: 2, longest_wait_since: LATER }),
        queue({ queue_id: 'company', waiting: 1, longest_wait_since: NOON }),
        queue({ queue_id: 'empty', waiting: 0, longest_wait_since: null }),
      ],
      calls: [call(), call({ call_id: 'b', phase: 'waiting' })],
    }),
    null,
    0,
  )

  it('adds the queues up and counts those who take calls', () => {
    expect(floorOf(world)).toMatchObject({
      waiting: 3,
      longestSince: NOON,
      calls: 1,
      staffed: 2,
      by: { ready: 1, talking: 1, logged_out: 1 },
    })
  })

  it('shows the working before the absent', () => {
    expect(ordered(Object.values(world.agents)).map((each) => each.state)).toEqual([
      'ready',
      'ready',
      'talking',
      'logged_out',
    ])
  })

  it('marks who is too long in a state', () => {
    const held = agent({ state: 'held', since: NOON })
    expect(tooLong(held, Date.parse(NOON) + 119_000)).toBe(false)
    expect(tooLong(held, Date.parse(NOON) + 121_000)).toBe(true)
    expect(tooLong(agent({ since: NOON }), Date.parse(NOON) + 1e9)).toBe(false)
  })

  it('colours figures at their thresholds only', () => {
    expect([levelOf('waiting', 2), levelOf('waiting', 3), levelOf('waiting', 10)]).toEqual([
      'calm',
      'warn',
      'bad',
    ])
    expect(levelOf('longest', 15_000)).toBe('warn')
  })
})
