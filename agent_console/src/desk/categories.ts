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
    return [{ code: each.code, ...path, letters: path.zh.split(' › ').map(initials).join(' ') }]
  })
}

/** Those first in whose way a name begins with what is sought. */
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
  const begins = (leaf: Leaf): boolean => {
    const names = [...leaf.zh.split(' › '), ...leaf.letters.split(' ')]
    return names.some((name) => name.startsWith(words[0] ?? ''))
  }
  return [...fits.filter(begins), ...fits.filter((leaf) => !begins(leaf))].slice(0, atMost)
}
