/** How the line is, from two looks at WebRTC's counters. Figures in, a grade out. */

export interface Counters {
  /** Milliseconds. */
  at: number
  received: number
  lost: number
  /** Seconds, as WebRTC gives them. */
  jitter: number
  roundTrip: number | null
  codec: string
}

export type Grade = 'good' | 'fair' | 'poor' | 'silent'

export interface Quality {
  grade: Grade
  lossPercent: number
  jitterMs: number
  roundTripMs: number | null
  /** Mean opinion score, 1 to 4.4, by the simplified E-model (ITU-T G.107). */
  mos: number
  codec: string
}

export function quality(before: Counters, now: Counters): Quality {
  const received = Math.max(0, now.received - before.received)
  const lost = Math.max(0, now.lost - before.lost)
  const expected = received + lost
  const lossPercent = expected === 0 ? 0 : (100 * lost) / expected
  const jitterMs = now.jitter * 1000
  const roundTripMs = now.roundTrip === null ? null : now.roundTrip * 1000
  const delay = (roundTripMs ?? 0) / 2 + 2 * jitterMs + 20
  const r = 93.2 - 0.024 * delay - (delay > 177.3 ? 0.11 * (delay - 177.3) : 0) - 2.5 * lossPercent
  const bounded = Math.min(93.2, Math.max(0, r))
  const mos = 1 + 0.035 * bounded + bounded * (bounded - 60) * (100 - bounded) * 7e-6
  const grade = received === 0 ? 'silent' : mos >= 4 ? 'good' : mos >= 3.4 ? 'fair' : 'poor'
  return { grade, lossPercent, jitterMs, roundTripMs, mos, codec: now.codec }
}

/** The counters out of a report; null while nothing has been received yet. */
export function counted(report: Iterable<Record<string, unknown>>, at: number): Counters | null {
  const all = [...report]
  const inbound = all.find((each) => each['type'] === 'inbound-rtp' && each['kind'] === 'audio')
  if (!inbound) return null
  const codec = all.find((each) => each['type'] === 'codec' && each['id'] === inbound['codecId'])
  const pair = all.find((each) => each['type'] === 'candidate-pair' && each['nominated'] === true)
  const roundTrip = pair?.['currentRoundTripTime']
  const name = codec?.['mimeType']
  return {
    at,
    received: number(inbound['packetsReceived']),
    lost: number(inbound['packetsLost']),
    jitter: number(inbound['jitter']),
    roundTrip: typeof roundTrip === 'number' ? roundTrip : null,
    codec: typeof name === 'string' ? name.replace('audio/', '') : '',
  }
}

function number(value: unknown): number {
  return typeof value === 'number' ? value : 0
}
