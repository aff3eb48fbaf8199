import { describe, expect, it } from 'vitest'
import { call } from '@/live/examples'
import { figuresOf } from './today'

const at = (second: number): string =>
  new Date(Date.parse('2026-11-21T04:00:00Z') + second * 1000).toISOString()

describe('the figures of the day', () => {
  it('are none without calls', () => {
    expect(figuresOf([], 'agent1')).toEqual({
      calls: 0,
      talkSeconds: null,
      waitSeconds: null,
      within15: null,
      satisfied: null,
    })
  })

  it('count what this agent answered', () => {
    const calls = [
      call({ queued_at: at(0), answered_at: at(10), ended_at: at(70), rating: 1 }),
      call({ queued_at: at(0), answered_at: at(30), ended_at: at(50), rating: 4 }),
      call({ queued_at: null, arrived_at: at(0), answered_at: at(5), ended_at: null }),
      call({ answered_by: { user_id: 'agent2', name: '' } }),
    ]
    expect(figuresOf(calls, 'agent1')).toEqual({
      calls: 3,
      talkSeconds: 40,
      waitSeconds: 15,
      within15: 2 / 3,
      satisfied: 0.5,
    })
  })
})
