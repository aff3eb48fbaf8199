import { describe, expect, it } from 'vitest'
import { agent, snapshot } from '@/live/examples'
import { drawn } from '@/live/world'
import { choicesFor, found, handover, invitation } from './choices'

const naming = {
  pick: (said: Record<string, string>) => said['zh'] ?? '',
  bySkill: (skill: string) => `按技能 ${skill}`,
}
const base = snapshot()
const specialist = (
  user_id: string,
  name: string,
  state: 'ready' | 'logged_out' | 'talking',
  reachable = true,
) => ({
  user_id,
  name,
  department: '人社局',
  skills: { social_security: 4 },
  state,
  phone_reachable: reachable,
})
const world = drawn(
  snapshot({
    agents: [agent(), agent({ user_id: 'agent2', name: '王芳' })],
    directory: {
      ...base.directory,
      specialists: [
        specialist('s1', '杨帆', 'logged_out', false),
        specialist('s2', '陈静', 'talking'),
        specialist('s3', '李强', 'ready'),
      ],
    },
  }),
  null,
  0,
)

describe('whom to invite', () => {
  const choices = choicesFor(world, 'invite', naming)

  it('begins with specialists who can come, and never names myself', () => {
    expect(choices.map((each) => each.target.id)).toEqual([
      's3',
      's2',
      's1',
      'social_security',
      'agent2',
      '110',
    ])
  })

  it.each([
    ['李', ['s3']],
    ['人社 杨', ['s1']],
    ['social', ['s3', 's2', 's1', 'social_security']],
    ['110', ['110']],
    ['公安', ['110']],
    ['nobody', []],
  ])('is found by any of its words: %s', (search, ids) => {
    expect(found(choices, search).map((each) => each.target.id)).toEqual(ids)
  })

  it('becomes a command', () => {
    expect(invitation('a', { kind: 'skill', id: 'market' }, true)).toEqual({
      type: 'invite',
      call_id: 'a',
      privately: true,
      skill: 'market',
    })
    expect(invitation('a', { kind: 'queue', id: 'hotline' }, true)).toBeNull()
  })
})

describe('whom to transfer to', () => {
  it('begins with queues and has no skills', () => {
    const ids = choicesFor(world, 'transfer', naming).map((each) => each.target.id)
    expect(ids).toEqual(['hotline', 'agent2', 's3', 's2', 's1', '110'])
    expect(handover('a', { kind: 'user', id: 'agent2' })).toEqual({
      type: 'transfer',
      call_id: 'a',
      agent: 'agent2',
    })
    expect(handover('a', { kind: 'skill', id: 'x' })).toBeNull()
  })
})
