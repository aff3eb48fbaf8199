/** Where and as whom this page registers: a password for one login, made by the engine. */
import { api, attempt } from '@/api/client'
import type { components } from '@/generated/openapi'

export type Credentials = components['schemas']['SoftphoneView']

export type Asked =
  | { kind: 'given'; credentials: Credentials }
  /** This person has no telephone. */
  | { kind: 'not_offered' }
  /** Ask again in a moment. */
  | { kind: 'unreachable' }

/** Asks for this login's account; the account of an earlier page or computer is void from then on. */
export async function askForCredentials(): Promise<Asked> {
  const { data, problem } = await attempt(api.POST('/api/v1/me/softphone'))
  if (data) return { kind: 'given', credentials: data }
  return {
    kind: ['no_phone', 'forbidden', 'not_found'].includes(problem.reason) ? 'not_offered' : 'unreachable',
  }
}

/** The telephone on the desk is used from now on. */
export async function useDeskPhone(): Promise<void> {
  await attempt(api.DELETE('/api/v1/me/softphone'))
}
