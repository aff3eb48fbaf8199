/** The language of the screens, and words for what the centre says in codes. */
import { computed, watch } from 'vue'
import { createI18n, useI18n } from 'vue-i18n'
import type { AgentState, DirectoryView } from '@/live/world'
import { settings } from '@/settings'
import en from './en'
import zh from './zh-CN'

export const i18n = createI18n({
  legacy: false,
  locale: settings.locale,
  fallbackLocale: 'zh-CN',
  messages: { 'zh-CN': zh, en },
})

watch(
  () => settings.locale,
  (locale) => {
    i18n.global.locale.value = locale
    document.documentElement.lang = locale
    document.title = i18n.global.t('app.title')
  },
  { immediate: true },
)

interface Choice {
  code: string
  zh: string
  en: string
}

export function useWords() {
  const { t } = useI18n()
  const chinese = computed(() => settings.locale === 'zh-CN')

  /** Of something said in both languages. */
  const pick = (said: { zh: string; en: string } | Record<string, string>): string =>
    (chinese.value ? said['zh'] : said['en']) ?? said['zh'] ?? ''
  const choice = (choices: readonly Choice[] | undefined, code: string | null): string => {
    const found = choices?.find((each) => each.code === code)
    return found ? pick({ zh: found.zh, en: found.en }) : (code ?? '')
  }
  const OWN = ['login', 'missed', 'rejected', 'no_phone', 'connection_lost']
  const reason = (directory: DirectoryView | undefined, code: string): string =>
    OWN.includes(code) ? t(`reason.${code}`) : choice(directory?.not_ready_reasons, code)
  const state = (now: AgentState): string => t(`state.${now}`)

  return { t, pick, choice, reason, state }
}
