import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { Connection, type Answer, type Ears, type Link, type Socket } from './connection'
import { agent, call, snapshot } from './examples'
import { myCall, type World } from './world'

/** The server's end of one socket: what the screen sent, and what to say to it. */
class FakeSocket implements Socket {
  private ears: Ears | null = null
  readonly sent: Record<string, unknown>[] = []
  closed = false
  send(text: string): void {
    this.sent.push(JSON.parse(text) as Record<string, unknown>)
  }
  close(): void {
    this.closed = true
  }
  listen(ears: Ears): void {
    this.ears = ears
  }
  open(): void {
    this.ears?.opened()
  }
  say(message: unknown): void {
    this.ears?.said(JSON.stringify(message))
  }
  end(code: number): void {
    this.ears?.closed(code)
  }
  commands(): Record<string, unknown>[] {
    return this.sent.filter((each) => 'id' in each)
  }
}

const sockets: FakeSocket[] = []
const links: Link[] = []
let shown: { world: World; stale: boolean } | null = null
let connection: Connection

function last<T>(list: readonly T[]): T {
  const found = list[list.length - 1]
  if (found === undefined) throw new Error('nothing there')
  return found
}

function live(seq = 1): FakeSocket {
  const socket = last(sockets)
  socket.open()
  socket.say(snapshot({ seq }))
  return socket
}

/** Lets time pass while the server answers every ping. */
function passes(seconds: number, socket?: FakeSocket): void {
  for (let step = 0; step < seconds * 10; step += 1) {
    const before = socket?.sent.length ?? 0
    vi.advanceTimersByTime(100)
    if (socket?.sent.slice(before).some((each) => each['type'] === 'ping')) socket.say({ type: 'pong' })
  }
}

beforeEach(() => {
  vi.useFakeTimers()
  sockets.length = links.length = 0
  shown = null
  connection = new Connection(
    {
      open: () => {
        const socket = new FakeSocket()
        sockets.push(socket)
        return socket
      },
      token: () => 'a-token',
      softphone: () => true,
      now: () => Date.now(),
      random: () => 0.5,
    },
    {
      world: (world, stale) => (shown = { world, stale }),
      link: (link) => links.push(link),
    },
  )
  connection.start()
})

afterEach(() => {
  connection.stop()
  vi.useRealTimers()
})

describe('a screen that connects', () => {
  it('says hello first and draws the snapshot', () => {
    const socket = live()
    expect(socket.sent[0]).toMatchObject({ type: 'hello', version: 1, token: 'a-token', softphone: true })
    expect(socket.sent[0]?.['client']).toMatch(/^[A-Za-z0-9-]{8,64}$/)
    expect(shown?.stale).toBe(false)
    expect(last(links)).toEqual({ kind: 'live' })
  })

  it('applies changes in order', () => {
    const socket = live()
    socket.say({ type: 'call', seq: 2, call: call({ call_id: 'a', version: 3 }) })
    socket.say({ type: 'agent', seq: 3, agent: agent({ state: 'talking', call_id: 'a' }) })
    expect(shown && myCall(shown.world)?.call_id).toBe('a')
    expect(shown?.stale).toBe(false)
  })

  it('asks for a snapshot after a gap, once, and says meanwhile that it may be old', () => {
    const socket = live()
    socket.say({ type: 'call', seq: 4, call: call({ call_id: 'a' }) })
    socket.say({ type: 'call', seq: 5, call: call({ call_id: 'b' }) })
    expect(socket.sent.filter((each) => each['type'] === 'sync')).toHaveLength(1)
    expect(shown?.stale).toBe(true)
    expect(shown?.world.calls).toEqual({})
    socket.say(snapshot({ seq: 6, calls: [call({ call_id: 'b' })] }))
    expect(shown?.stale).toBe(false)
    expect(Object.keys(shown?.world.calls ?? {})).toEqual(['b'])
    socket.say({ type: 'call_ended', seq: 7, call_id: 'b', call: null })
    expect(shown?.world.calls).toEqual({})
  })
})

describe('a command', () => {
  it('is done or refused by its id', async () => {
    const socket = live()
    const held = connection.ask({ type: 'hold', call_id: 'a' })
    const left = connection.ask({ type: 'leave', call_id: 'a' })
    const [first, second] = socket.commands()
    expect(first?.['id']).not.toBe(second?.['id'])
    socket.say({ type: 'done', id: first?.['id'] })
    socket.say({
      type: 'refused',
      id: second?.['id'],
      reason: 'nobody_left',
      message_zh: '…',
      message_en: '…',
      detail: '',
    })
    await expect(held).resolves.toEqual({ ok: true })
    await expect(left).resolves.toMatchObject({ ok: false, reason: 'nobody_left' })
  })

  it('is sent again with the same id from the same client after the connection broke', async () => {
    const first = live()
    const asked = connection.ask({ type: 'hangup', call_id: 'a' })
    first.end(1006)
    passes(1)
    expect(sockets).toHaveLength(2)
    const second = live()
    expect(second.commands()).toEqual(first.commands())
    expect(second.sent[0]?.['client']).toBe(first.sent[0]?.['client'])
    second.say({ type: 'done', id: second.commands()[0]?.['id'] })
    await expect(asked).resolves.toEqual({ ok: true })
    passes(1, second)
    expect(second.commands()).toHaveLength(1)
  })

  it('waits for the snapshot of a new connection before it is sent', () => {
    void connection.ask({ type: 'hold', call_id: 'a' })
    const socket = last(sockets)
    socket.open()
    expect(socket.commands()).toHaveLength(0)
    socket.say(snapshot({ seq: 1 }))
    expect(socket.commands()).toHaveLength(1)
  })

  it('is given up after eight seconds, with a sentence and a look at the truth', async () => {
    const socket = live()
    const asked = connection.ask({ type: 'hold', call_id: 'a' })
    passes(9, socket)
    const answer: Answer = await asked
    expect(answer).toMatchObject({ ok: false, reason: 'unanswered' })
    expect(socket.sent.some((each) => each['type'] === 'sync')).toBe(true)
  })
})

describe('a connection that breaks', () => {
  it('tries again soon, then less often, and never gives up', () => {
    live().end(1006)
    expect(shown?.stale).toBe(true)
    passes(0.5)
    expect(sockets).toHaveLength(2)
    for (let failed = 0; failed < 20; failed += 1) {
      last(sockets).end(1006)
      passes(3)
    }
    expect(sockets.length).toBeGreaterThan(20)
    live()
    expect(shown?.stale).toBe(false)
  })

  it('notices within five seconds that nobody answers, though no close came', () => {
    const socket = live()
    passes(20, socket)
    expect(sockets).toHaveLength(1)
    expect(shown?.stale).toBe(false)
    passes(3)
    expect(shown?.stale).toBe(true)
    passes(2.5)
    expect(socket.closed).toBe(true)
    expect(sockets).toHaveLength(2)
  })

  it('gives up an attempt that hangs', () => {
    passes(4)
    expect(sockets.length).toBeGreaterThan(1)
    expect(sockets[0]?.closed).toBe(true)
  })

  it('does not wait when the network is said to be back', () => {
    live()
    for (let failed = 0; failed < 6; failed += 1) {
      last(sockets).end(1006)
      passes(3)
    }
    const tried = sockets.length
    last(sockets).end(1006)
    connection.hurry()
    expect(sockets).toHaveLength(tried + 1)
  })

  it.each([
    [4401, 'session'],
    [4429, 'screens'],
    [4400, 'version'],
  ])('ends for good when told so: %i', (code, why) => {
    live().end(code)
    expect(last(links)).toEqual({ kind: 'over', why })
    passes(10)
    expect(sockets).toHaveLength(1)
  })

  it('hears nothing more from a socket it has left', () => {
    const old = live()
    old.end(1006)
    passes(1)
    live(50)
    old.say({ type: 'call', seq: 51, call: call({ call_id: 'ghost' }) })
    expect(shown?.world.calls).toEqual({})
  })
})
