import { describe, expect, it } from 'vitest'
import { clock, since, span, startOfDay } from './time'

describe('times', () => {
  it.each([
    [0, '0:00'],
    [9_400, '0:09'],
    [751_000, '12:31'],
    [3_723_000, '1:02:03'],
    [-5_000, '0:00'],
  ])('a length of %i ms reads %s', (given, read) => expect(span(given)).toBe(read))

  it('a clock is Shanghai’s', () => {
    expect(clock('2026-11-21T16:00:05Z')).toBe('00:00:05')
    expect(clock('2026-11-21T04:00:05Z', false)).toBe('12:00')
  })

  it('counts on from a moment', () => {
    expect(since('2026-11-21T04:00:00Z', Date.parse('2026-11-21T04:01:05Z'))).toBe('1:05')
    expect(since(null, 0)).toBe('')
  })

  it('a day begins at midnight in Shanghai', () => {
    expect(startOfDay(Date.parse('2026-11-21T15:59:59Z'))).toBe('2026-11-20T16:00:00.000Z')
    expect(startOfDay(Date.parse('2026-11-21T16:00:00Z'))).toBe('2026-11-21T16:00:00.000Z')
  })
})
