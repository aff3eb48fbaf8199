import { beforeEach, describe, expect, it } from 'vitest'
import { draftOf, EMPTY, forgetDraft, keepDraft } from './draft'

const DAY = 24 * 3600_000
const draft = { disposition: 'answered', fields: { ...EMPTY, content: '暖气不热' }, onto: 3 }

describe('a draft', () => {
  beforeEach(() => localStorage.clear())

  it('is there again after a reload, and gone once sent', () => {
    keepDraft('a', { ...draft, at: 5 })
    expect(draftOf('a', 6)).toEqual({ ...draft, at: 5 })
    expect(draftOf('b', 6)).toBeNull()
    forgetDraft('a')
    expect(draftOf('a', 6)).toBeNull()
  })

  it('does not outlive a day', () => {
    keepDraft('a', { ...draft, at: 0 })
    expect(draftOf('b', DAY + 1)).toBeNull()
    expect(localStorage).toHaveLength(0)
  })
})
