/** The earlier tickets of a call's number, looked for once a call. */
import { ref, watch } from 'vue'
import { api, attempt, type Sentence } from '@/api/client'
import type { components } from '@/generated/openapi'
import type { CallView } from '@/live/world'
import { useSession } from '@/session'

export type EarlierView = components['schemas']['EarlierView']

export function useEarlier(call: () => CallView | null) {
  const session = useSession()
  const tickets = ref<EarlierView[]>([])
  const problem = ref<Sentence | null>(null)
  const state = ref<'none' | 'loading' | 'there' | 'hidden'>('none')

  watch(
    () => call()?.call_id,
    async (id) => {
      tickets.value = []
      problem.value = null
      state.value = id === undefined ? 'none' : session.may('see_tickets') ? 'loading' : 'hidden'
      if (id === undefined || state.value === 'hidden') return
      const path = { call_id: id }
      const { data, problem: no } = await attempt(
        api.GET('/api/v1/calls/{call_id}/history', { params: { path } }),
      )
      if (call()?.call_id !== id) return
      problem.value = no
      tickets.value = data?.tickets ?? []
      state.value = 'there'
    },
    { immediate: true },
  )
  return { tickets, problem, state }
}
