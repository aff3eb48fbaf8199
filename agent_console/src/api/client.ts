/** The engine's REST interface, typed by its own description, and one shape for every no. */
import createClient from 'openapi-fetch'
import type { paths } from '@/generated/openapi'

export interface Sentence {
  reason: string
  zh: string
  en: string
}

const AWAY: Sentence = {
  reason: 'unreachable',
  zh: '连接不上服务器；请检查网络，稍后会自动重试。',
  en: 'The server cannot be reached; check the network, it is tried again by itself.',
}
const TIMEOUT_MS = 10_000

let token = ''
let onSessionOver: () => void = () => undefined

export function useToken(now: string, whenOver: () => void): void {
  token = now
  onSessionOver = whenOver
}

/** fetch with a deadline; AbortSignal.timeout is younger than the browsers in offices. */
async function bounded(input: RequestInfo | URL, init?: RequestInit): Promise<Response> {
  const controller = new AbortController()
  const timer = setTimeout(() => controller.abort(), TIMEOUT_MS)
  try {
    return await fetch(input, { ...init, signal: controller.signal, credentials: 'omit' })
  } finally {
    clearTimeout(timer)
  }
}

export const api = createClient<paths>({
  baseUrl: location.origin,
  fetch: (request) => bounded(request),
})

api.use({
  onRequest({ request }) {
    if (token) request.headers.set('Authorization', `Bearer ${token}`)
    return request
  },
  onResponse({ request, response }) {
    if (response.status === 401 && !request.url.endsWith('/api/v1/session')) onSessionOver()
  },
})

/** An answer's sentence for people, out of whatever the server or the network gave. */
export function sentenceOf(error: unknown): Sentence {
  const fault = (error as { error?: { reason?: unknown; message_zh?: unknown; message_en?: unknown } } | null)
    ?.error
  if (fault && typeof fault.message_zh === 'string' && typeof fault.message_en === 'string') {
    return { reason: String(fault.reason), zh: fault.message_zh, en: fault.message_en }
  }
  return AWAY
}

/** A request's data, or a sentence; never throws for what a network or a server may do. */
export async function attempt<T>(
  request: Promise<{ data?: T; error?: unknown }>,
): Promise<{ data: T; problem: null } | { data: null; problem: Sentence }> {
  try {
    const { data, error } = await request
    return data === undefined ? { data: null, problem: sentenceOf(error) } : { data, problem: null }
  } catch (error) {
    // What fetch throws: TypeError without a network, AbortError after the deadline, SyntaxError for what is no JSON.
    if (error instanceof TypeError || error instanceof DOMException || error instanceof SyntaxError) {
      return { data: null, problem: AWAY }
    }
    throw error
  }
}
