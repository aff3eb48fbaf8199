/** The ticket form: read once its ticket has a number, kept at every pause of typing, never lost by a cut line. */
import { computed, onBeforeUnmount, reactive, ref, shallowRef, watch } from 'vue'
import { api, attempt, type Sentence } from '@/api/client'
import type { components } from '@/generated/openapi'
import type { CallView } from '@/live/world'
import { clock } from '@/time'
import { draftOf, EMPTY, forgetDraft, keepDraft, type Fields } from './draft'

type FormSpecView = components['schemas']['FormSpecView']
type FormView = components['schemas']['FormView']

const PAUSE_MS = 700
const AGAIN_MS = 3000

let words: Promise<FormSpecView | null> | null = null
/** Kinds and categories, read once a page. */
async function readWords(): Promise<FormSpecView | null> {
  words ??= attempt(api.GET('/api/v1/ticket-form', { params: { query: {} } })).then(({ data }) => data)
  const found = await words
  if (!found) words = null
  return found
}

export function useForm(call: () => CallView) {
  const spec = shallowRef<FormSpecView | null>(null)
  const fields = reactive<Fields>({ ...EMPTY })
  const disposition = ref('')
  const state = ref<'loading' | 'clean' | 'dirty' | 'saving' | 'conflict'>('loading')
  const problem = ref<Sentence | null>(null)
  const savedAt = ref<string | null>(null)
  let version = 0
  let timer: ReturnType<typeof setTimeout> | null = null
  /** Grows with every stroke: what was typed while a saving was on its way is saved after it. */
  let strokes = 0

  void readWords().then((found) => (spec.value = found))

  function put(from: Fields): void {
    for (const name of Object.keys(EMPTY) as (keyof Fields)[]) Object.assign(fields, { [name]: from[name] })
  }

  function begin(): void {
    const draft = draftOf(call().call_id, Date.now())
    put(draft?.fields ?? EMPTY)
    disposition.value = draft?.disposition ?? call().disposition ?? ''
    version = draft?.onto ?? 0
    savedAt.value = null
    problem.value = null
    state.value = draft ? 'dirty' : 'loading'
    void read()
  }

  async function read(): Promise<void> {
    const { call_id: id, ticket_number: number } = call()
    if (!number) return // comes a moment after the answer; until then this computer keeps what is typed
    const { data, problem: no } = await attempt(
      api.GET('/api/v1/tickets/{number}/form', { params: { path: { number } } }),
    )
    if (call().call_id !== id) return
    if (!data) {
      problem.value = no
      later(AGAIN_MS)
      return
    }
    if (state.value === 'loading' || same(data)) take(data)
    else if (data.version > version) state.value = 'conflict'
    else later(PAUSE_MS)
  }

  function same(data: FormView): boolean {
    return (Object.keys(EMPTY) as (keyof Fields)[]).every((name) => fields[name] === data[name])
  }

  function take(data: FormView): void {
    put(data)
    version = data.version
    savedAt.value = data.saved_at && clock(data.saved_at)
    state.value = 'clean'
    problem.value = null
  }

  /** Called at every stroke. */
  function changed(): void {
    strokes += 1
    if (state.value !== 'conflict') state.value = 'dirty'
    keep()
    later(PAUSE_MS)
  }

  function keep(): void {
    keepDraft(call().call_id, {
      disposition: disposition.value,
      fields: { ...fields },
      onto: version,
      at: Date.now(),
    })
  }

  function later(after: number): void {
    if (timer) clearTimeout(timer)
    timer = setTimeout(() => void save(), after)
  }

  async function save(): Promise<void> {
    const { call_id: id, ticket_number: number } = call()
    if (state.value === 'loading') {
      await read()
      return
    }
    if (!number || state.value !== 'dirty') return
    state.value = 'saving'
    const upTo = strokes
    const { data, problem: no } = await attempt(
      api.PUT('/api/v1/tickets/{number}/form', {
        params: { path: { number } },
        body: { ...fields, version, ...(spec.value ? { spec_version: spec.value.version } : {}) },
      }),
    )
    if (call().call_id !== id) return
    problem.value = no
    if (data) {
      version = data.version
      savedAt.value = data.saved_at && clock(data.saved_at)
      state.value = upTo === strokes ? 'clean' : 'dirty'
      keep()
      if (state.value === 'dirty') later(PAUSE_MS)
    } else if (no?.reason === 'form_changed') {
      // Perhaps by this very page, over a line that was cut before the answer came.
      state.value = 'dirty'
      await read()
    } else {
      state.value = 'dirty'
      later(AGAIN_MS)
    }
  }

  /** After a change elsewhere: take the other one's, or write mine over it. */
  async function settle(mine: boolean): Promise<void> {
    const number = call().ticket_number
    if (!number) return
    const { data, problem: no } = await attempt(
      api.GET('/api/v1/tickets/{number}/form', { params: { path: { number } } }),
    )
    problem.value = no
    if (!data) return
    if (mine) {
      version = data.version
      state.value = 'dirty'
      await save()
    } else {
      take(data)
      forgetDraft(call().call_id)
    }
  }

  /** Nothing of this call needs keeping here any more. */
  function sent(): void {
    if (state.value === 'clean') forgetDraft(call().call_id)
  }

  const missing = computed(() => {
    const kind = spec.value?.kinds.find((each) => each.code === fields.kind)
    return (kind?.required ?? []).filter((name) => !fields[name as keyof Fields])
  })

  watch(() => call().call_id, begin, { immediate: true })
  watch(
    () => call().ticket_number,
    (number) => {
      if (number) void read()
    },
  )
  onBeforeUnmount(() => {
    if (timer) clearTimeout(timer)
    // The page changes, the work goes on: what was typed last is on its way and kept here until it has arrived.
    void save()
  })

  return { spec, fields, disposition, state, problem, savedAt, missing, changed, save, settle, sent }
}
