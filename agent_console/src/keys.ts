/** One listener for the whole page; whoever is mounted says what an action does just now. */
import { onBeforeUnmount, onMounted } from 'vue'
import { holderOf, spelling, type KeyAction } from './keymap'
import { settings } from './settings'

type Handler = () => void
const handlers = new Map<KeyAction, Handler[]>()

export function useKey(action: KeyAction, handler: Handler): void {
  onMounted(() => handlers.set(action, [...(handlers.get(action) ?? []), handler]))
  onBeforeUnmount(() =>
    handlers.set(
      action,
      (handlers.get(action) ?? []).filter((each) => each !== handler),
    ),
  )
}

export function listenToKeys(): void {
  window.addEventListener('keydown', (event) => {
    if (event.repeat) return
    const action = holderOf(settings.keys, spelling(event))
    if (action === null) return
    // Also where nothing listens: F6 or F7 must never do what the browser does with them while somebody talks.
    event.preventDefault()
    const stack = handlers.get(action) ?? []
    stack[stack.length - 1]?.()
  })
}
