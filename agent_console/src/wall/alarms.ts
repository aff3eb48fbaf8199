import { useWords } from '@/i18n'
import type { AlarmRaised } from '@/live/world'

/** An alarm in words: its own sentence, or its key with what it says. */
export function useAlarmWords() {
  const { t } = useWords()
  const KNOWN = ['telephony_lost', 'no_flow', 'no_queue', 'leg_end_unseen', 'arrange_failed']
  return (alarm: AlarmRaised): string => {
    const facts = Object.entries(alarm.facts)
      .map(([name, fact]) => `${name} ${fact}`)
      .join(' · ')
    const word = KNOWN.includes(alarm.key) ? t(`alarm.${alarm.key}`) : alarm.key
    return facts ? `${word} (${facts})` : word
  }
}
