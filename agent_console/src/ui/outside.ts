import { onBeforeUnmount, onMounted, type Ref } from 'vue'

/** Tells of a press anywhere but inside the element. */
export function onClickOutside(element: Readonly<Ref<HTMLElement | null>>, tell: () => void): void {
  const listener = (event: Event): void => {
    if (event.target instanceof Node && element.value && !element.value.contains(event.target)) tell()
  }
  onMounted(() => document.addEventListener('pointerdown', listener))
  onBeforeUnmount(() => document.removeEventListener('pointerdown', listener))
}
