// What a first visit loads: everything index.html names, with what those scripts import at once and their styles.
import { readFile } from 'node:fs/promises'
import { gzipSync } from 'node:zlib'

const LIMIT_KB = 350
const dist = new URL('../dist/', import.meta.url)
const manifest = JSON.parse(await readFile(new URL('.vite/manifest.json', dist), 'utf8'))

function files(key, seen = new Set()) {
  const chunk = manifest[key]
  if (!chunk || seen.has(chunk.file)) return seen
  seen.add(chunk.file)
  for (const style of chunk.css ?? []) seen.add(style)
  for (const other of chunk.imports ?? []) files(other, seen)
  return seen
}

async function weigh(names) {
  const sizes = await Promise.all(
    names.map(async (name) => [name, gzipSync(await readFile(new URL(name, dist)), { level: 9 }).length]),
  )
  const total = sizes.reduce((sum, [, size]) => sum + size, 0)
  return { sizes: sizes.sort((a, b) => b[1] - a[1]), kb: total / 1000 }
}

const entry = files('index.html')
// What an agent who logs in loads: the frame, the desk, the telephone.
const desk = new Set(entry)
for (const key of ['src/frame/FramePage.vue', 'src/desk/DeskPage.vue', 'node_modules/jssip/lib/JsSIP.js']) {
  if (!manifest[key]) throw new Error(`${key} is no part of its own any more; correct scripts/size.mjs`)
  files(key, desk)
}
const first = await weigh(['index.html', ...desk])
for (const [name, size] of first.sizes) console.log(`${(size / 1000).toFixed(1).padStart(8)} kB  ${name}`)
console.log(
  `${first.kb.toFixed(1).padStart(8)} kB  compressed, first load of the agent desk (limit ${LIMIT_KB})`,
)
for (const key of Object.keys(manifest).filter((each) => manifest[each].isDynamicEntry)) {
  const { kb } = await weigh([...files(key)].filter((name) => !entry.has(name)))
  console.log(`${kb.toFixed(1).padStart(8)} kB  more for ${key}`)
}
if (first.kb > LIMIT_KB) {
  console.error(`The first load is larger than ${LIMIT_KB} kB; split a route or drop an import.`)
  process.exit(1)
}
