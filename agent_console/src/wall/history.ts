/** Half an hour of what the floor was like, as long as this page is open. */
import { onBeforeUnmount, onMounted, shallowRef } from 'vue'
import { useLive } from '@/live/store'
import { floorOf } from './floor'

export interface Sample {
  /** Milliseconds. */
  at: number
  waiting: number
  talking: number
}

const EVERY_MS = 5000
const KEPT_MS = 30 * 60_000

export function useHistory() {
  const live = useLive()
  const samples = shallowRef<Sample[]>([])
  let timer: ReturnType<typeof setInterval> | null = null

  function look(): void {
    if (!live.world || live.stale) return
    const floor = floorOf(live.world)
    const sample = { at: live.now, waiting: floor.waiting, talking: floor.by.talking + floor.by.held }
    samples.value = [...samples.value.filter((each) => live.now - each.at < KEPT_MS), sample]
  }
  onMounted(() => {
    look()
    timer = setInterval(look, EVERY_MS)
  })
  onBeforeUnmount(() => {
    if (timer) clearInterval(timer)
  })
  return samples
}
