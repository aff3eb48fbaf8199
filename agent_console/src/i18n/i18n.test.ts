import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import en from './en'
import zh from './zh-CN'

type Words = { [key: string]: string | Words }

function leaves(words: Words, path = ''): Map<string, string> {
  const found = new Map<string, string>()
  for (const [key, value] of Object.entries(words)) {
    if (typeof value === 'string') found.set(path + key, value)
    else for (const [inner, text] of leaves(value, `${path}${key}.`)) found.set(inner, text)
  }
  return found
}

const chinese = leaves(zh)
const english = leaves(en)

function sources(folder: string): string[] {
  return readdirSync(folder, { withFileTypes: true }).flatMap((each) => {
    const path = join(folder, each.name)
    if (each.isDirectory()) return each.name === 'generated' || each.name === 'i18n' ? [] : sources(path)
    return /(?<!\.test)\.(ts|vue)$/.test(each.name) ? [path] : []
  })
}

const code = sources(join(__dirname, '..')).map((path) => ({ path, text: readFileSync(path, 'utf8') }))

describe('the two languages', () => {
  it('have the same keys', () => {
    expect([...english.keys()].sort()).toEqual([...chinese.keys()].sort())
  })

  it('say the same figures and names', () => {
    const names = (text: string): string[] =>
      [...text.matchAll(/\{(\w+)\}/g)].map((each) => each[1] ?? '').sort()
    for (const [key, text] of chinese) expect(names(english.get(key) ?? ''), key).toEqual(names(text))
  })

  it('leave nothing untranslated', () => {
    for (const [key, text] of english)
      if (key !== 'login.other') expect(text, key).not.toMatch(/[\u4e00-\u9fff]/)
  })
})

describe('the pages', () => {
  it('use no key that is not there', () => {
    for (const { path, text } of code) {
      for (const [, key] of text.matchAll(/\bt\(\s*'([\w.]+)'/g))
        expect(chinese.has(key ?? ''), `${path}: ${key}`).toBe(true)
    }
  })

  it('say nothing in Chinese of their own', () => {
    for (const { path, text } of code) {
      if (/[/\\](connection|client|examples)\.ts$/.test(path)) continue // sentences in both languages, like the engine's own
      expect(text, path).not.toMatch(/[\u4e00-\u9fff]/)
    }
  })

  it('need every word there is', () => {
    const all = code.map(({ text }) => text).join('\n')
    const bases = [...all.matchAll(/\bt\(\s*`([\w.]+)\.\$\{/g)].map((each) => `${each[1] ?? ''}.`)
    const written = readFileSync(join(__dirname, 'index.ts'), 'utf8') + all
    bases.push(...[...written.matchAll(/`([\w.]+)\.\$\{/g)].map((each) => `${each[1] ?? ''}.`))
    const unused = [...chinese.keys()].filter(
      (key) => !written.includes(`'${key}'`) && !bases.some((base) => key.startsWith(base)),
    )
    expect(unused).toEqual([])
  })
})
