/** The keys of everything used on a call. The words are the console's actions, the values `KeyboardEvent.key`. */
export const KEY_ACTIONS = [
  'answer',
  'mute',
  'hold',
  'party',
  'transfer',
  'ready',
  'keypad',
  'finish',
] as const
export type KeyAction = (typeof KEY_ACTIONS)[number]

export const DEFAULT_KEYS: Readonly<Record<KeyAction, string>> = {
  answer: 'F2',
  mute: 'F4',
  hold: 'F6',
  party: 'F7',
  transfer: 'F8',
  ready: 'F9',
  keypad: 'F10',
  finish: 'Ctrl+Enter',
}

/** `Ctrl+Enter`, `F2`, `Alt+a`: one spelling for what was pressed. */
export function spelling(
  event: Pick<KeyboardEvent, 'key' | 'ctrlKey' | 'altKey' | 'metaKey' | 'shiftKey'>,
): string {
  const key = event.key === ' ' ? 'Space' : event.key.length === 1 ? event.key.toUpperCase() : event.key
  const parts = [event.ctrlKey && 'Ctrl', event.altKey && 'Alt', event.metaKey && 'Meta']
  // Shift with a letter is the letter; with F2 it is another key.
  if (event.shiftKey && event.key.length > 1) parts.push('Shift')
  return [...parts.filter(Boolean), key].join('+')
}

/** Whether a key may stand for an action: what is typed into a form may not. */
export function usable(key: string): boolean {
  return (
    /^((Ctrl|Alt|Meta|Shift)\+)*(F([1-9]|1[0-2])|Pause|ScrollLock|Insert)$/.test(key) ||
    /^((Ctrl|Alt)\+)+[^+]+$/.test(key)
  )
}

/** The action whose key this is now, if another has it. */
export function holderOf(keys: Readonly<Record<KeyAction, string>>, key: string): KeyAction | null {
  return KEY_ACTIONS.find((action) => keys[action] === key) ?? null
}
