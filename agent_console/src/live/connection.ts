/**
 * One WebSocket to the centre that comes back by itself: hello, snapshot, changes in order, commands that are safe to
 * send twice. What it knows is drawn by `world.ts`; here is only when to speak, when to doubt and when to try again.
 */
import { changed, drawn, type ClientMessage, type ServerMessage, type World } from './world'

/** What a command may end with; `unanswered` is this side's own word: the screen shows whether it was done. */
export type Answer = { ok: true } | { ok: false; reason: string; zh: string; en: string; detail: string }

export type Link =
  | { kind: 'connecting'; attempt: number }
  | { kind: 'live' }
  | { kind: 'over'; why: 'session' | 'screens' | 'version' }

type WithId = Extract<ClientMessage, { id: number }>
type WithoutId<T> = T extends unknown ? Omit<T, 'id'> : never
export type Command = WithoutId<WithId>

/** What is used of a WebSocket. */
export interface Socket {
  send(text: string): void
  close(): void
  /** Set once, by whoever opened it; after that it only tells. */
  listen(ears: Ears): void
}

export interface Ears {
  opened(): void
  said(text: string): void
  closed(code: number): void
}

export interface Outside {
  open(): Socket
  token(): string
  softphone(): boolean
  /** Milliseconds. */
  now(): number
  random(): number
}

export interface Told {
  world(world: World, stale: boolean): void
  link(link: Link): void
}

const OPEN_MS = 3000
const PING_MS = 1500
/** Nothing heard for so long: what is shown may be old. */
const DOUBT_MS = 2500
const DEAD_MS = 4500
/** A command without an answer for so long is given up; the server would answer it the same for a minute. */
const ANSWER_MS = 8000
const TICK_MS = 250
const WAITS_MS = [100, 400, 800, 1500, 2000]
/** Commands waiting for an answer; a person does not have more in the air. */
const PENDING = 50

const SESSION_OVER = 4401
const TOO_MANY_SCREENS = 4429
const BAD_HELLO = 4400

interface Pending {
  text: string
  until: number
  resolve(answer: Answer): void
}

export class Connection {
  private socket: Socket | null = null
  private world: World | null = null
  private synced = false
  private heardAt = 0
  private pingedAt = 0
  private openedAt = 0
  private attempt = 0
  private retryAt: number | null = 0
  private stopped = false
  private shownStale = true
  private nextId: number
  private readonly client: string
  private readonly pending = new Map<number, Pending>()
  private timer: ReturnType<typeof setInterval> | null = null

  constructor(
    private readonly outside: Outside,
    private readonly told: Told,
  ) {
    // A page's own name, and ids that no earlier page has used.
    this.client = Array.from({ length: 16 }, () => Math.floor(outside.random() * 16).toString(16)).join('')
    this.nextId = outside.now() * 1000
  }

  start(): void {
    this.timer = setInterval(() => this.tick(), TICK_MS)
    this.connect()
  }

  stop(): void {
    this.stopped = true
    if (this.timer) clearInterval(this.timer)
    this.drop()
    this.giveUp(() => true)
  }

  /** The network is back, or the page is looked at again: do not wait for the next attempt. */
  hurry(): void {
    if (this.retryAt !== null) this.retryAt = 0
    this.tick()
  }

  /** Say hello anew, e.g. because this page has become or is no longer the telephone. */
  again(): void {
    this.drop()
    this.attempt = 0
    this.retryAt = 0
    this.tick()
  }

  ask(command: Command): Promise<Answer> {
    return new Promise((resolve) => {
      if (this.stopped || this.pending.size >= PENDING) {
        resolve(UNANSWERED)
        return
      }
      const id = this.nextId++
      const text = JSON.stringify({ ...command, id })
      this.pending.set(id, { text, until: this.outside.now() + ANSWER_MS, resolve })
      if (this.synced) this.socket?.send(text)
    })
  }

  private connect(): void {
    this.retryAt = null
    this.attempt += 1
    this.told.link({ kind: 'connecting', attempt: this.attempt })
    const socket = this.outside.open()
    this.socket = socket
    this.openedAt = this.outside.now()
    this.heardAt = this.openedAt
    this.synced = false
    const opened = (): void => {
      const hello: ClientMessage = {
        type: 'hello',
        version: 1,
        token: this.outside.token(),
        client: this.client,
        softphone: this.outside.softphone(),
      }
      socket.send(JSON.stringify(hello))
    }
    // A socket that was left may still speak; nobody listens.
    socket.listen({
      opened: () => {
        if (socket === this.socket) opened()
      },
      said: (text) => {
        if (socket !== this.socket) return
        this.heardAt = this.outside.now()
        this.hear(JSON.parse(text) as ServerMessage)
      },
      closed: (code) => {
        if (socket === this.socket) this.closed(code)
      },
    })
  }

  private hear(message: ServerMessage): void {
    switch (message.type) {
      case 'snapshot': {
        this.world = drawn(message, this.world, this.outside.now())
        if (!this.synced) {
          this.synced = true
          this.attempt = 0
          this.told.link({ kind: 'live' })
          // The server remembers ids over connections: what it has done already it answers, and does not do again.
          for (const { text } of this.pending.values()) this.socket?.send(text)
        }
        this.show(false)
        break
      }
      case 'done':
        this.answered(message.id, { ok: true })
        break
      case 'refused':
        if (message.id !== null) {
          const { reason, message_zh: zh, message_en: en, detail } = message
          this.answered(message.id, { ok: false, reason, zh, en, detail })
        }
        break
      case 'pong':
        break // that it was heard is all it says
      case 'call':
      case 'call_ended':
      case 'agent':
      case 'queue':
      case 'alarm': {
        if (!this.world) break
        const next = changed(this.world, message)
        if (next === null) {
          this.sync()
        } else {
          this.world = next
          this.show(this.shownStale)
        }
        break
      }
    }
  }

  private sync(): void {
    if (this.shownStale) return // asked already
    const sync: ClientMessage = { type: 'sync' }
    this.socket?.send(JSON.stringify(sync))
    this.show(true)
  }

  private show(stale: boolean): void {
    this.shownStale = stale
    if (this.world) this.told.world(this.world, stale)
  }

  private answered(id: number, answer: Answer): void {
    const pending = this.pending.get(id)
    this.pending.delete(id)
    pending?.resolve(answer)
  }

  private giveUp(which: (pending: Pending) => boolean): boolean {
    const over = [...this.pending].filter(([, pending]) => which(pending))
    for (const [id] of over) this.answered(id, UNANSWERED)
    return over.length > 0
  }

  private tick(): void {
    if (this.stopped) return
    const now = this.outside.now()
    if (this.giveUp((pending) => now >= pending.until) && this.synced) this.sync()
    if (this.retryAt !== null) {
      if (now >= this.retryAt) this.connect()
      return
    }
    if (!this.synced) {
      if (now - this.openedAt > OPEN_MS) this.lost()
      return
    }
    if (now - this.heardAt > DEAD_MS) {
      this.lost()
      return
    }
    if (now - this.heardAt > DOUBT_MS && !this.shownStale) this.sync()
    if (now - Math.max(this.pingedAt, this.heardAt) >= PING_MS) {
      this.pingedAt = now
      const ping: ClientMessage = { type: 'ping' }
      this.socket?.send(JSON.stringify(ping))
    }
  }

  private closed(code: number): void {
    const why =
      code === SESSION_OVER
        ? 'session'
        : code === TOO_MANY_SCREENS
          ? 'screens'
          : code === BAD_HELLO
            ? 'version'
            : null
    if (why === null) {
      this.lost()
      return
    }
    this.drop()
    this.stop()
    this.show(true)
    this.told.link({ kind: 'over', why })
  }

  private lost(): void {
    this.drop()
    this.show(true)
    const wait = WAITS_MS[Math.min(this.attempt, WAITS_MS.length - 1)] ?? 2000
    // Two hundred screens that were cut at once should not all come back in the same instant.
    this.retryAt = this.outside.now() + wait * (0.75 + this.outside.random() / 2)
    this.told.link({ kind: 'connecting', attempt: this.attempt + 1 })
  }

  private drop(): void {
    const socket = this.socket
    this.socket = null
    this.synced = false
    socket?.close()
  }
}

const UNANSWERED: Answer = {
  ok: false,
  reason: 'unanswered',
  zh: '系统没有及时应答；请先看屏幕上的状态，再决定是否重试。',
  en: 'The system did not answer in time; look at what the screen shows before trying again.',
  detail: '',
}
