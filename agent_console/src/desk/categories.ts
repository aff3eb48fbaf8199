/** The category tree as one list of leaves, found by any word, by code or by the first letters of the pinyin. */
import type { components } from '@/generated/openapi'
import { initials } from './pinyin'

export type CategoryView = components['schemas']['CategoryView']

export interface Leaf {
  code: string
  zh: string
  en: string
  letters: string
}

export function leavesOf(
  categories: readonly CategoryView[],
  above: { zh: string; en: string } | null = null,
): Leaf[] {
  return categories.flatMap((each) => {
    const path = {
      zh: above ? `${above.zh} › ${each.zh}` : each.zh,
      en: above ? `${above.en} › ${each.en}` : each.en,
    }
    if (each.parts.length) return leavesOf(each.parts, path)
    return [{ code: each.code, ...path, letters: initials(path.zh) }]
  })
}

/** Those whose own name begins with what is sought come first. */
export function matching(leaves: readonly Leaf[], search: string, atMost = 30): Leaf[] {
  const words = search
    .trim()
    .toLowerCase()
    .split(/[\s›]+/)
    .filter(Boolean)
  const fits = leaves.filter((leaf) => {
    const text = `${leaf.zh} ${leaf.en} ${leaf.code}`.toLowerCase()
    return words.every((word) => text.includes(word) || leaf.letters.includes(word))
  })
  const own = (leaf: Leaf): boolean => (leaf.zh.split(' › ').pop() ?? '').startsWith(words[0] ?? '')
  return [...fits.filter(own), ...fits.filter((leaf) => !own(leaf))].slice(0, atMost)
}
