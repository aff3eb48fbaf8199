/** Sounds made here, from no file: the ring, a message, an alarm; and the levels of what is heard. */
import { settings } from '@/settings'

let context: AudioContext | null = null
let output: MediaStreamAudioDestinationNode | null = null
let player: HTMLAudioElement | null = null

type WithSink = HTMLAudioElement & { setSinkId?: (id: string) => Promise<void> }

export function audioContext(): AudioContext {
  context ??= new AudioContext()
  if (context.state === 'suspended') void context.resume()
  return context
}

/** Whether the browser lets sounds out yet; before the first click on a page it does not. */
export function soundAllowed(): boolean {
  return audioContext().state === 'running'
}

/** Through an audio element, because only an element can be given a loudspeaker of its own. */
function destination(): AudioNode {
  const audio = audioContext()
  if (!output) {
    output = audio.createMediaStreamDestination()
    player = new Audio()
    player.srcObject = output.stream
  }
  if (player) {
    sendTo(player, settings.ringer)
    player.play().catch(() => undefined) // not allowed before the first click; the notification is shown anyway
  }
  return output
}

/** Plays through the chosen device, or the default one where that has been unplugged. */
export function sendTo(element: HTMLAudioElement, device: string): void {
  ;(element as WithSink).setSinkId?.(device).catch(() => {
    if (device) sendTo(element, '')
  })
}

function beep(
  frequency: number,
  from: number,
  seconds: number,
  volume: number,
  to: AudioNode,
): OscillatorNode {
  const audio = audioContext()
  const gain = audio.createGain()
  gain.gain.setValueAtTime(0, from)
  gain.gain.linearRampToValueAtTime(volume, from + 0.03)
  gain.gain.setValueAtTime(volume, from + seconds - 0.05)
  gain.gain.linearRampToValueAtTime(0, from + seconds)
  gain.connect(to)
  const oscillator = audio.createOscillator()
  oscillator.frequency.value = frequency
  oscillator.connect(gain)
  oscillator.start(from)
  oscillator.stop(from + seconds)
  return oscillator
}

/** Rings until told otherwise: a soft double note of a second, three seconds of silence. */
export function ring(): () => void {
  if (!settings.sounds.ring) return () => undefined
  const to = destination()
  let playing: OscillatorNode[] = []
  const once = (): void => {
    const from = audioContext().currentTime
    const volume = settings.ringVolume * 0.5
    playing = [beep(587, from, 0.45, volume, to), beep(784, from + 0.5, 0.5, volume, to)]
  }
  once()
  const timer = setInterval(once, 4000)
  return () => {
    clearInterval(timer)
    for (const each of playing) each.disconnect()
  }
}

export function chime(): void {
  if (settings.sounds.message) beep(880, audioContext().currentTime, 0.15, 0.2, destination())
}

export function alarmSound(): void {
  if (!settings.sounds.alarm) return
  const from = audioContext().currentTime
  const to = destination()
  for (const [index, note] of [660, 520].entries()) beep(note, from + index * 0.25, 0.22, 0.3, to)
}

/** Calls back ten times a second with how loud the stream is, 0 to 1, until told otherwise. */
export function meter(stream: MediaStream, level: (now: number) => void): () => void {
  const audio = audioContext()
  const source = audio.createMediaStreamSource(stream)
  const analyser = audio.createAnalyser()
  analyser.fftSize = 512
  source.connect(analyser)
  const samples = new Uint8Array(analyser.fftSize)
  const timer = setInterval(() => {
    analyser.getByteTimeDomainData(samples)
    let sum = 0
    for (const sample of samples) sum += ((sample - 128) / 128) ** 2
    const decibels = 10 * Math.log10(sum / samples.length + 1e-6)
    level(Math.min(1, Math.max(0, (decibels + 50) / 40)))
  }, 100)
  return () => {
    clearInterval(timer)
    source.disconnect()
  }
}
