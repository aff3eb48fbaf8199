/** Times as people read them: Shanghai's clock, and lengths as 0:09, 12:31, 1:02:03. */
const ZONE = 'Asia/Shanghai'

export function clock(at: string, withSeconds = true): string {
  return new Date(at).toLocaleTimeString('zh-CN', {
    timeZone: ZONE,
    hour12: false,
    hour: '2-digit',
    minute: '2-digit',
    ...(withSeconds ? { second: '2-digit' as const } : {}),
  })
}

export function day(at: string): string {
  return new Date(at).toLocaleDateString('zh-CN', { timeZone: ZONE, month: '2-digit', day: '2-digit' })
}

export function span(milliseconds: number): string {
  const all = Math.max(0, Math.floor(milliseconds / 1000))
  const [hours, minutes, seconds] = [Math.floor(all / 3600), Math.floor(all / 60) % 60, all % 60]
  const two = (figure: number): string => String(figure).padStart(2, '0')
  return hours ? `${hours}:${two(minutes)}:${two(seconds)}` : `${minutes}:${two(seconds)}`
}

export function since(at: string | null, now: number): string {
  return at === null ? '' : span(now - Date.parse(at))
}

/** The first instant of today in Shanghai, which keeps no summer time. */
export function startOfDay(now: number): string {
  const shift = 8 * 3600_000
  return new Date(Math.floor((now + shift) / 86_400_000) * 86_400_000 - shift).toISOString()
}
