/** Small true-to-type facts for tests. */
import type { AgentView, CallView, LegView, QueueView, Snapshot } from './world'

const NOON = '2026-11-21T04:00:00Z'

export function agent(given: Partial<AgentView> = {}): AgentView {
  return {
    user_id: 'agent1',
    name: '张敏',
    department: '热线中心',
    phone: '1001',
    phone_reachable: true,
    skills: { hotline: 3 },
    roles: ['agent'],
    state: 'ready',
    reason: '',
    since: NOON,
    call_id: null,
    after_call: 'ready',
    after_reason: '',
    wrap_up_ends_at: null,
    version: 1,
    ...given,
  }
}

export function leg(given: Partial<LegView> = {}): LegView {
  return {
    leg_id: 'a-2',
    role: 'agent',
    address: '1001',
    user_id: 'agent1',
    name: '张敏',
    state: 'up',
    place: 'together',
    muted: false,
    asked_at: NOON,
    asked_by: null,
    answered_at: NOON,
    joined_at: NOON,
    ended_at: null,
    outcome: null,
    ...given,
  }
}

export function call(given: Partial<CallView> = {}): CallView {
  return {
    call_id: 'a',
    version: 1,
    phase: 'talking',
    line: '12345',
    dialled: '12345',
    caller: '13812345678',
    caller_masked: false,
    queue: 'hotline',
    arrived_at: NOON,
    queued_at: NOON,
    answered_at: NOON,
    answered_by: { user_id: 'agent1', name: '张敏' },
    handled_by: [{ user_id: 'agent1', name: '张敏' }],
    ended_at: null,
    end_reason: null,
    disposition: null,
    note: '',
    rating: null,
    ticket_number: null,
    legs: [leg({ leg_id: 'a', role: 'caller', user_id: null, name: '', address: '13812345678' }), leg()],
    steps: [],
    ...given,
  }
}

export function queue(given: Partial<QueueView> = {}): QueueView {
  return {
    queue_id: 'hotline',
    name: { zh: '热线', en: 'Hotline' },
    skill: 'hotline',
    waiting: 0,
    longest_wait_since: null,
    ready: 1,
    staffed: 2,
    ...given,
  }
}

export function snapshot(given: Partial<Snapshot> = {}): Snapshot {
  const mine = agent()
  return {
    type: 'snapshot',
    seq: 1,
    server_time: NOON,
    me: {
      user_id: 'agent1',
      name: '张敏',
      roles: ['agent'],
      rights: ['telephone', 'see_calls', 'see_colleagues'],
      expires_at: '2026-11-21T16:00:00Z',
      agent: mine,
    },
    my_call: null,
    agents: [mine],
    queues: [queue()],
    calls: [],
    directory: {
      not_ready_reasons: [{ code: 'meal', zh: '就餐', en: 'Meal' }],
      dispositions: [{ code: 'answered', zh: '直接答复', en: 'Answered on the spot' }],
      allowed_numbers: [{ number: '110', zh: '公安报警', en: 'Police' }],
      specialists: [
        {
          user_id: 'spec1',
          name: '李强',
          department: '市场监管局',
          skills: { market: 4 },
          state: 'logged_out',
          phone_reachable: false,
        },
      ],
      queues: [{ queue_id: 'hotline', name: { zh: '热线', en: 'Hotline' }, skill: 'hotline' }],
    },
    ...given,
  }
}
