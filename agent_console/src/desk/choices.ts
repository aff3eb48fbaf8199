/** Whom a call can be brought to: one list of people, skills, queues and numbers, found by any word of theirs. */
import type { Command } from '@/live/connection'
import type { AgentState, World } from '@/live/world'

export type Target =
  | { kind: 'user'; id: string }
  | { kind: 'skill'; id: string }
  | { kind: 'queue'; id: string }
  | { kind: 'number'; id: string }

export interface Choice {
  target: Target
  group: 'people' | 'agents' | 'skills' | 'queues' | 'numbers'
  name: string
  /** Department, skills or the number itself. */
  about: string
  state: AgentState | null
  reachable: boolean
  /** Where it stands in its list: on duty first. */
  rank: number
}

export interface Naming {
  pick(said: { zh: string; en: string } | Record<string, string>): string
  bySkill(skill: string): string
}

export function choicesFor(world: World, purpose: 'invite' | 'transfer', naming: Naming): Choice[] {
  const me = world.me.user_id
  const people: Choice[] = world.directory.specialists
    .filter((each) => each.user_id !== me)
    .map((each) => person(each, 'people'))
  const specialists = new Set(people.map((each) => each.target.id))
  const agents = Object.values(world.agents)
    .filter((each) => each.user_id !== me && !specialists.has(each.user_id) && each.roles.includes('agent'))
    .map((each) => person(each, 'agents'))
  const skills =
    purpose === 'invite'
      ? [...new Set(world.directory.specialists.flatMap((each) => Object.keys(each.skills)))].map(
          (skill): Choice => ({
            target: { kind: 'skill', id: skill },
            group: 'skills',
            name: naming.bySkill(skill),
            about: '',
            state: null,
            reachable: true,
            rank: 0,
          }),
        )
      : []
  const queues =
    purpose === 'transfer'
      ? world.directory.queues.map((queue): Choice => ({
          target: { kind: 'queue', id: queue.queue_id },
          group: 'queues',
          name: naming.pick(queue.name),
          about: '',
          state: null,
          reachable: true,
          rank: 0,
        }))
      : []
  const numbers = world.directory.allowed_numbers.map((each): Choice => ({
    target: { kind: 'number', id: each.number },
    group: 'numbers',
    name: naming.pick({ zh: each.zh, en: each.en }),
    about: each.number,
    state: null,
    reachable: true,
    rank: 0,
  }))
  const ranked = [...people].sort((a, b) => a.rank - b.rank)
  const others = agents.sort((a, b) => a.rank - b.rank)
  return purpose === 'invite'
    ? [...ranked, ...skills, ...others, ...numbers]
    : [...queues, ...others, ...ranked, ...numbers]
}

interface Somebody {
  user_id: string
  name: string
  department: string
  skills: Record<string, number>
  state: AgentState
  phone_reachable: boolean
}

function person(who: Somebody, group: 'people' | 'agents'): Choice {
  const order: AgentState[] = ['ready', 'wrap_up', 'not_ready', 'offered', 'talking', 'held', 'logged_out']
  return {
    target: { kind: 'user', id: who.user_id },
    group,
    name: who.name,
    about: [who.department, ...Object.keys(who.skills)].filter(Boolean).join(' · '),
    state: who.state,
    reachable: who.phone_reachable,
    rank: order.indexOf(who.state) + (who.phone_reachable ? 0 : 10),
  }
}

/** Every word of the search must be somewhere in the choice. */
export function found(choices: readonly Choice[], search: string): Choice[] {
  const words = search.trim().toLowerCase().split(/\s+/).filter(Boolean)
  if (!words.length) return [...choices]
  return choices.filter((each) => {
    const text = `${each.name} ${each.about} ${each.target.id}`.toLowerCase()
    return words.every((word) => text.includes(word))
  })
}

export function invitation(callId: string, target: Target, privately: boolean): Command | null {
  const asked = { type: 'invite' as const, call_id: callId, privately }
  switch (target.kind) {
    case 'user':
      return { ...asked, user: target.id }
    case 'skill':
      return { ...asked, skill: target.id }
    case 'number':
      return { ...asked, number: target.id }
    case 'queue':
      return null // nobody in particular to talk with
  }
}

export function handover(callId: string, target: Target): Command | null {
  const asked = { type: 'transfer' as const, call_id: callId }
  switch (target.kind) {
    case 'user':
      return { ...asked, agent: target.id }
    case 'queue':
      return { ...asked, queue: target.id }
    case 'number':
      return { ...asked, number: target.id }
    case 'skill':
      return null
  }
}
