import { describe, expect, it } from 'vitest'
import { counted, quality, type Counters } from './quality'

const START: Counters = { at: 0, received: 1000, lost: 5, jitter: 0.002, roundTrip: 0.004, codec: 'opus' }

function later(given: Partial<Counters>): Counters {
  return { ...START, at: 2000, received: 1100, ...given }
}

describe('the quality of a line', () => {
  it('is good in a quiet office network', () => {
    expect(quality(START, later({}))).toMatchObject({ grade: 'good', lossPercent: 0, roundTripMs: 4 })
  })

  it.each([
    ['a little loss', { received: 1096, lost: 11 }, 'fair'],
    ['much loss', { received: 1080, lost: 25 }, 'poor'],
    ['a long way', { roundTrip: 0.4, jitter: 0.06 }, 'fair'],
    ['nothing that arrives', { received: 1000 }, 'silent'],
  ] as const)('counts only what happened since the last look: %s', (_, given, grade) => {
    expect(quality(START, later(given)).grade).toBe(grade)
  })

  it('is not confused by counters that begin anew', () => {
    expect(quality(START, later({ received: 40, lost: 0 })).lossPercent).toBe(0)
  })

  it('reads what a browser reports', () => {
    const report = [
      { type: 'codec', id: 'c1', mimeType: 'audio/opus' },
      { type: 'inbound-rtp', kind: 'audio', codecId: 'c1', packetsReceived: 9, packetsLost: 1, jitter: 0.01 },
      { type: 'candidate-pair', nominated: true, currentRoundTripTime: 0.002 },
    ]
    expect(counted(report, 5)).toEqual({
      at: 5,
      received: 9,
      lost: 1,
      jitter: 0.01,
      roundTrip: 0.002,
      codec: 'opus',
    })
    expect(counted([], 5)).toBeNull()
  })
})
