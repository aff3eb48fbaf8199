/** The earlier tickets of a caller's number, looked for once a call. */
import { ref, watch } from 'vue'
import { api, attempt, type Sentence } from '@/api/client'
import type { components } from '@/generated/openapi'
import type { CallView } from '@/live/world'
import { useSession } from '@/session'

export type TicketLine = components['schemas']['TicketLineView']

export function useEarlier(call: () => CallView | null) {
  const session = useSession()
  const tickets = ref<TicketLine[]>([])
  const problem = ref<Sentence | null>(null)
  const state = ref<'none' | 'loading' | 'there' | 'hidden'>('none')

  watch(
    () => call()?.call_id,
    async (id) => {
      const now = call()
      tickets.value = []
      problem.value = null
      if (!id || !now) {
        state.value = 'none'
        return
      }
      if (now.caller_masked || !session.may('find_by_number') || !/^\+?[0-9*#]{1,24}$/.test(now.caller)) {
        state.value = 'hidden'
        return
      }
      state.value = 'loading'
      const query = { caller: now.caller, limit: 20 }
      const { data, problem: no } = await attempt(api.GET('/api/v1/tickets', { params: { query } }))
      if (call()?.call_id !== id) return
      problem.value = no
      tickets.value = (data?.tickets ?? []).filter((ticket) => ticket.call_id !== id)
      state.value = 'there'
    },
    { immediate: true },
  )
  return { tickets, problem, state }
}
