// Makes the types of everything the engine says and takes from its own descriptions in docs/, which tests of the
// engine keep current: a change there that the console does not follow stops its build.
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import openapiTS, { astToString } from 'openapi-typescript'

const docs = new URL('../../docs/', import.meta.url)
const out = new URL('../src/generated/', import.meta.url)
const head = '// Made by scripts/types.mjs; change callcenter/api instead.\n\n'

async function read(name) {
  return JSON.parse(await readFile(new URL(name, docs), 'utf8'))
}

async function write(name, document) {
  const text = head + astToString(await openapiTS(document, { defaultNonNullable: false }))
  const place = new URL(name, out)
  const before = await readFile(place, 'utf8').catch(() => '')
  // An unchanged file keeps its time, so that nothing is made again because of it.
  if (text !== before) await writeFile(place, text)
}

await mkdir(out, { recursive: true })
await write('openapi.ts', await read('openapi.json'))

const wire = await read('wire.json')
await write('wire.ts', {
  openapi: '3.1.0',
  info: { title: wire.title, version: '1' },
  paths: {},
  components: {
    schemas: JSON.parse(JSON.stringify(wire.$defs).replaceAll('#/$defs/', '#/components/schemas/')),
  },
})
