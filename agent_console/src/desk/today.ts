/** One's own calls of today, and the figures made of them. */
import { computed, onMounted, ref, watch } from 'vue'
import { api, attempt, type Sentence } from '@/api/client'
import { useLive } from '@/live/store'
import type { CallView } from '@/live/world'
import { startOfDay } from '@/time'

export interface Figures {
  calls: number
  talkSeconds: number | null
  waitSeconds: number | null
  within15: number | null
  satisfied: number | null
}

const seconds = (from: string, to: string): number => (Date.parse(to) - Date.parse(from)) / 1000
const mean = (all: number[]): number | null =>
  all.length ? all.reduce((sum, each) => sum + each, 0) / all.length : null
const share = (all: boolean[]): number | null => (all.length ? all.filter(Boolean).length / all.length : null)

/** Of calls this agent answered first; waiting begins in the queue. */
export function figuresOf(calls: readonly CallView[], userId: string): Figures {
  const mine = calls.filter((call) => call.answered_by?.user_id === userId)
  const talks = mine.flatMap((call) =>
    call.answered_at && call.ended_at ? [seconds(call.answered_at, call.ended_at)] : [],
  )
  const waits = mine.flatMap((call) =>
    call.answered_at ? [seconds(call.queued_at ?? call.arrived_at, call.answered_at)] : [],
  )
  const ratings = mine.flatMap((call) => (call.rating === null ? [] : [call.rating <= 3]))
  return {
    calls: mine.length,
    talkSeconds: mean(talks),
    waitSeconds: mean(waits),
    within15: share(waits.map((each) => each <= 15)),
    satisfied: share(ratings),
  }
}

export function useToday() {
  const live = useLive()
  const records = ref<CallView[]>([])
  const problem = ref<Sentence | null>(null)
  const loaded = ref(false)

  async function load(): Promise<void> {
    const from = startOfDay(live.now)
    const { data, problem: no } = await attempt(
      api.GET('/api/v1/call-records', { params: { query: { from, limit: 200 } } }),
    )
    problem.value = no
    if (data) records.value = data.calls
    loaded.value = true
  }

  /** The records, with what was told of them since they were read. */
  const calls = computed(() => {
    const ended = live.world?.ended ?? []
    // A caller who still rates the conversation is a living call whose wrap-up is known already.
    const fresh = new Map(
      [...Object.values(live.world?.calls ?? {}), ...ended].map((call) => [call.call_id, call]),
    )
    const known = new Set(records.value.map((call) => call.call_id))
    const added = ended.filter((call) => !known.has(call.call_id)).reverse()
    return [...added, ...records.value].map((call) => {
      const newer = fresh.get(call.call_id)
      return newer && newer.version > call.version ? newer : call
    })
  })
  const figures = computed(() => figuresOf(calls.value, live.me?.user_id ?? ''))

  onMounted(() => void load())
  watch(
    () => live.agent?.call_id ?? null,
    (now) => {
      if (now === null) void load()
    },
  )
  return { calls, figures, problem, loaded, load }
}
