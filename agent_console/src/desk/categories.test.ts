import { describe, expect, it } from 'vitest'
import { leavesOf, matching, type CategoryView } from './categories'
import { initials } from './pinyin'

const part = (code: string, zh: string, en: string, parts: CategoryView[] = []): CategoryView => ({
  code,
  zh,
  en,
  parts,
})
const tree = [
  part('01', '城乡建设', 'Building', [
    part('0101', '供热', 'Heating', [
      part('010101', '温度不达标', 'Too cold'),
      part('010103', '停暖', 'No heating'),
    ]),
    part('0102', '供水', 'Water', [part('010201', '停水', 'No water')]),
  ]),
]

describe('the first letters of pinyin', () => {
  it.each([
    ['供热', 'gr'],
    ['温度不达标', 'wdbdb'],
    ['城乡建设', 'cxjs'],
    ['噪声', 'zs'],
    ['阿姨 A1', 'aya1'],
    ['', ''],
  ])('%s: %s', (text, letters) => expect(initials(text)).toBe(letters))
})

describe('a category', () => {
  const leaves = leavesOf(tree)

  it('is shown with the way to it', () => {
    expect(leaves[0]).toMatchObject({ code: '010101', zh: '城乡建设 › 供热 › 温度不达标' })
  })

  it.each([
    ['停', ['010103', '010201']],
    ['供热 停', ['010103']],
    ['gr', ['010101', '010103']],
    ['wdb', ['010101']],
    ['water', ['010201']],
    ['0101', ['010101', '010103']],
    ['xyz', []],
  ])('is found by %s', (search, codes) => {
    expect(matching(leaves, search).map((each) => each.code)).toEqual(codes)
  })
})
