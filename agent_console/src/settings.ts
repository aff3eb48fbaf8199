/** What this computer remembers: language, keys, sounds, devices. Nothing of calls or callers. */
import { reactive, watch } from 'vue'
import { DEFAULT_KEYS, type KeyAction } from './keymap'

export type Locale = 'zh-CN' | 'en'

export interface Settings {
  locale: Locale
  /** The telephone: this browser, or a SIP telephone on the desk. */
  phone: 'browser' | 'desk'
  keys: Record<KeyAction, string>
  sounds: { ring: boolean; message: boolean; alarm: boolean }
  ringVolume: number
  microphone: string
  /** Echo cancelling, noise suppression and gain control by the browser; a good headset may do without. */
  processing: boolean
  speaker: string
  /** Where it rings: may be the loudspeaker while talk goes to the headset. */
  ringer: string
  notifications: boolean
}

const PLACE = 'callcenter.settings'

function defaults(): Settings {
  return {
    locale: navigator.language.toLowerCase().startsWith('zh') ? 'zh-CN' : 'en',
    phone: 'browser',
    keys: { ...DEFAULT_KEYS },
    sounds: { ring: true, message: true, alarm: true },
    ringVolume: 0.6,
    microphone: '',
    processing: true,
    speaker: '',
    ringer: '',
    notifications: true,
  }
}

/** What was stored, laid over the defaults; what is not understood is left out. */
export function restored(text: string | null): Settings {
  const own = defaults()
  if (text === null) return own
  let stored: unknown
  try {
    stored = JSON.parse(text)
  } catch {
    return own
  }
  if (typeof stored !== 'object' || stored === null) return own
  return overlaid(own, stored as Record<string, unknown>)
}

function overlaid<T extends object>(own: T, stored: Record<string, unknown>): T {
  const result = { ...own } as Record<string, unknown>
  for (const [name, value] of Object.entries(own) as [string, unknown][]) {
    const given = stored[name]
    if (typeof value === 'object' && value !== null) {
      if (typeof given === 'object' && given !== null) {
        result[name] = overlaid(value, given as Record<string, unknown>)
      }
    } else if (typeof given === typeof value) {
      result[name] = given
    }
  }
  return result as T
}

export const settings = reactive(restored(localStorage.getItem(PLACE)))

watch(settings, (now) => localStorage.setItem(PLACE, JSON.stringify(now)), { deep: true })
