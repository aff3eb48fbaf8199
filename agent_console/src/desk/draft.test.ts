import { beforeEach, describe, expect, it } from 'vitest'
import { draftOf, forgetDraft, keepDraft } from './draft'

const DAY = 24 * 3600_000

describe('a draft', () => {
  beforeEach(() => localStorage.clear())

  it('is there again after a reload, and gone once sent', () => {
    keepDraft('a', { disposition: 'answered', note: '暖气不热', at: 5 })
    expect(draftOf('a', 6)?.note).toBe('暖气不热')
    expect(draftOf('b', 6)).toBeNull()
    forgetDraft('a')
    expect(draftOf('a', 6)).toBeNull()
  })

  it('does not outlive a day', () => {
    keepDraft('a', { disposition: '', note: 'x', at: 0 })
    expect(draftOf('b', DAY + 1)).toBeNull()
    expect(localStorage).toHaveLength(0)
  })
})
