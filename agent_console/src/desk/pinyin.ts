/**
 * The first letters of a Chinese word's pinyin, by the browser's own collation: a sign sorts between the first signs of
 * two letters. A sign of several readings has the letter of its commonest one.
 */
const LETTERS = 'ABCDEFGHJKLMNOPQRSTWXYZ'
/** The first sign of each letter in pinyin order. */
const FIRST = [
  0x963f, 0x516b, 0x5693, 0x54d2, 0x59b8, 0x53d1, 0x65ee, 0x54c8, 0x8ba5, 0x5494, 0x5783, 0x75f3, 0x62cf,
  0x5662, 0x5991, 0x4e03, 0x5465, 0x6268, 0x5b83, 0x7a75, 0x5915, 0x4e2b, 0x5e00,
].map((code) => String.fromCharCode(code))

const order = new Intl.Collator('zh-Hans-CN-u-co-pinyin')

export function initials(text: string): string {
  let found = ''
  for (const sign of text) {
    if (!/[\u4e00-\u9fff]/.test(sign)) {
      found += /[a-z0-9]/i.test(sign) ? sign.toLowerCase() : ''
      continue
    }
    let at = FIRST.length - 1
    while (at > 0 && order.compare(sign, FIRST[at] ?? '') < 0) at -= 1
    found += (LETTERS[at] ?? '').toLowerCase()
  }
  return found
}
