/** The live connection as the pages see it: what is so, since when, and a way to ask for things. */
import { defineStore } from 'pinia'
import { computed, reactive, ref, shallowRef } from 'vue'
import { useSession } from '@/session'
import { Connection, type Answer, type Command, type Link, type Socket } from './connection'
import { myCall, myLeg, type World } from './world'

export const useLive = defineStore('live', () => {
  const session = useSession()
  const world = shallowRef<World | null>(null)
  const stale = ref(true)
  const link = shallowRef<Link>({ kind: 'connecting', attempt: 0 })
  /** The server's clock in milliseconds, a step a second: what timers on screens are reckoned from. */
  const now = ref(Date.now())
  const softphone = ref(false)
  let connection: Connection | null = null
  let clock: ReturnType<typeof setInterval> | null = null

  const me = computed(() => world.value?.me ?? null)
  const agent = computed(() => world.value?.me.agent ?? null)
  const call = computed(() => (world.value ? myCall(world.value) : null))
  const leg = computed(() => (world.value && call.value ? myLeg(world.value, call.value) : null))

  const hurry = (): void => connection?.hurry()
  const seen = (): void => {
    if (!document.hidden) hurry()
  }

  function start(): void {
    if (connection) return
    connection = new Connection(
      {
        open: () => {
          const url = new URL('/api/v1/console', location.href)
          url.protocol = url.protocol.replace('http', 'ws')
          return listening(new WebSocket(url))
        },
        token: () => session.session?.token ?? '',
        softphone: () => softphone.value,
        now: () => Date.now(),
        random: () => Math.random(),
      },
      {
        world: (next, isStale) => {
          world.value = next
          stale.value = isStale
          now.value = Date.now() + next.clockOffset
        },
        link: (next) => {
          link.value = next
          if (next.kind === 'over' && next.why === 'session') session.over()
        },
      },
    )
    connection.start()
    clock = setInterval(() => (now.value = Date.now() + (world.value?.clockOffset ?? 0)), 500)
    window.addEventListener('online', hurry)
    document.addEventListener('visibilitychange', seen)
  }

  function stop(): void {
    connection?.stop()
    connection = null
    if (clock) clearInterval(clock)
    window.removeEventListener('online', hurry)
    document.removeEventListener('visibilitychange', seen)
    world.value = null
    stale.value = true
    link.value = { kind: 'connecting', attempt: 0 }
  }

  /** Whether this page is the telephone: the centre must know, to notice when it has gone. */
  function isSoftphone(on: boolean): void {
    if (softphone.value === on) return
    softphone.value = on
    connection?.again()
  }

  function ask(command: Command): Promise<Answer> {
    return connection ? connection.ask(command) : Promise.reject(new Error('not started'))
  }

  return { world, stale, link, now, me, agent, call, leg, softphone, start, stop, isSoftphone, ask }
})

function listening(socket: WebSocket): Socket {
  return {
    send: (text) => {
      // A socket that is closing takes no more; what was asked is asked again over the next one.
      if (socket.readyState === WebSocket.OPEN) socket.send(text)
    },
    close: () => socket.close(),
    listen: (ears) => {
      socket.addEventListener('open', () => ears.opened())
      socket.addEventListener('message', (event: MessageEvent<unknown>) => {
        if (typeof event.data === 'string') ears.said(event.data)
      })
      socket.addEventListener('close', (event) => ears.closed(event.code))
    },
  }
}

/** Ask, and keep the sentence of a no beside what it concerns until the next try. */
export function useAsk() {
  const live = useLive()
  const state = reactive<{ busy: boolean; refusal: Extract<Answer, { ok: false }> | null }>({
    busy: false,
    refusal: null,
  })
  async function ask(command: Command): Promise<boolean> {
    state.busy = true
    state.refusal = null
    const answer = await live.ask(command)
    state.busy = false
    if (!answer.ok) state.refusal = answer
    return answer.ok
  }
  return { state, ask }
}
