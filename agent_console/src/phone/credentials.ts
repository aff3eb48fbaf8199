/** Where and as whom this page registers: a password for one login, made by the engine. */
export interface Credentials {
  /** `sip:web-agent1-7f3c@callcenter` */
  uri: string
  /** `wss://…` or `ws://…` */
  websocket: string
  user: string
  password: string
  expires_at: string
}

export type Asked =
  | { kind: 'given'; credentials: Credentials }
  | { kind: 'not_offered' }
  | { kind: 'unreachable' }
  | { kind: 'session_over' }

/** Asks for this login's account; the account of an earlier page or computer is void from then on. */
export async function askForCredentials(token: string): Promise<Asked> {
  const controller = new AbortController()
  const timer = setTimeout(() => controller.abort(), 8000)
  try {
    const response = await fetch('/api/v1/me/softphone', {
      method: 'POST',
      headers: { Authorization: `Bearer ${token}`, 'Content-Type': 'application/json' },
      body: '{}',
      signal: controller.signal,
    })
    if (response.ok) return { kind: 'given', credentials: (await response.json()) as Credentials }
    if (response.status === 401) return { kind: 'session_over' }
    return { kind: [403, 404, 405, 409].includes(response.status) ? 'not_offered' : 'unreachable' }
  } catch (error) {
    if (error instanceof TypeError || error instanceof DOMException || error instanceof SyntaxError) {
      return { kind: 'unreachable' }
    }
    throw error
  } finally {
    clearTimeout(timer)
  }
}
