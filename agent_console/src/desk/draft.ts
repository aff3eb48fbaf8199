/** What an agent has typed about a call, kept on this computer until it is sent: a crash of the browser loses nothing. */
export interface Draft {
  disposition: string
  note: string
  /** Milliseconds. */
  at: number
}

const PLACE = 'callcenter.draft.'
const KEPT_MS = 24 * 3600_000

export function keepDraft(callId: string, draft: Draft): void {
  localStorage.setItem(PLACE + callId, JSON.stringify(draft))
}

export function forgetDraft(callId: string): void {
  localStorage.removeItem(PLACE + callId)
}

/** The draft of this call; those of yesterday are thrown away on the way. */
export function draftOf(callId: string, now: number): Draft | null {
  for (const key of Object.keys(localStorage)) {
    if (!key.startsWith(PLACE)) continue
    const draft = JSON.parse(localStorage.getItem(key) ?? 'null') as Draft | null
    if (!draft || now - draft.at > KEPT_MS) localStorage.removeItem(key)
  }
  const text = localStorage.getItem(PLACE + callId)
  return text === null ? null : (JSON.parse(text) as Draft)
}
