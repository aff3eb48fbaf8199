// A compressed copy beside every file, so that the engine need not compress anything while calls go on.
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { gzipSync } from 'node:zlib'

const assets = new URL('../dist/assets/', import.meta.url)
for (const name of await readdir(assets)) {
  if (!/\.(js|css|svg)$/.test(name)) continue
  const whole = await readFile(new URL(name, assets))
  const small = gzipSync(whole, { level: 9 })
  if (small.length < whole.length) await writeFile(new URL(`${name}.gz`, assets), small)
}
