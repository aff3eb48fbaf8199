/** What an agent has typed about a call, kept on this computer until the server has it: a crash loses nothing. */
import type { components } from '@/generated/openapi'

export type Fields = Omit<Required<components['schemas']['FormBody']>, 'version' | 'spec_version'>

export interface Draft {
  disposition: string
  fields: Fields
  /** The server's version these fields were written upon. */
  onto: number
  /** Milliseconds. */
  at: number
}

export const EMPTY: Readonly<Fields> = {
  kind: '',
  title: '',
  content: '',
  category: '',
  region: '',
  address: '',
  occurred_on: null,
  contact_name: '',
  contact_phone: '',
  confidential: false,
  reply: '',
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
