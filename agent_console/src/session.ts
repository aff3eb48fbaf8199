/** Who is logged in. The token stays in this tab and is gone with it. */
import { defineStore } from 'pinia'
import { computed, ref } from 'vue'
import { api, attempt, useToken, type Sentence } from './api/client'
import type { components } from './generated/openapi'

type SessionView = components['schemas']['SessionView']
export type Right = SessionView['rights'][number]
export type UserRole = SessionView['roles'][number]

const PLACE = 'callcenter.session'

export const useSession = defineStore('session', () => {
  const session = ref<SessionView | null>(stored())
  const rights = computed(() => new Set(session.value?.rights ?? []))
  const roles = computed(() => new Set(session.value?.roles ?? []))
  /** Why the last session ended without being asked to. */
  const ended = ref<'session' | null>(null)

  function keep(now: SessionView | null): void {
    session.value = now
    if (now) sessionStorage.setItem(PLACE, JSON.stringify(now))
    else sessionStorage.removeItem(PLACE)
    useToken(now?.token ?? '', over)
  }

  function over(): void {
    if (!session.value) return
    keep(null)
    ended.value = 'session'
  }

  async function logIn(user: string, password: string): Promise<Sentence | null> {
    const { data, problem } = await attempt(api.POST('/api/v1/session', { body: { user, password } }))
    if (problem) return problem
    ended.value = null
    keep(data)
    return null
  }

  async function logOut(): Promise<void> {
    await attempt(api.DELETE('/api/v1/session'))
    keep(null)
  }

  const may = (right: Right): boolean => rights.value.has(right)
  const is = (role: UserRole): boolean => roles.value.has(role)

  useToken(session.value?.token ?? '', over)
  return { session, ended, logIn, logOut, over, may, is }
})

function stored(): SessionView | null {
  const text = sessionStorage.getItem(PLACE)
  return text === null ? null : (JSON.parse(text) as SessionView)
}
