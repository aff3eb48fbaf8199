/** The microphone, and a word for each way it may be missing. */
import { settings } from '@/settings'

export type MicrophoneState = 'unknown' | 'ready' | 'denied' | 'missing' | 'busy' | 'insecure'

export class NoMicrophone extends Error {
  constructor(readonly state: Exclude<MicrophoneState, 'unknown' | 'ready'>) {
    super(state)
  }
}

export function constraints(): MediaTrackConstraints {
  const device = settings.microphone ? { deviceId: { ideal: settings.microphone } } : {}
  const on = settings.processing
  return { ...device, echoCancellation: on, noiseSuppression: on, autoGainControl: on }
}

export async function openMicrophone(): Promise<MediaStream> {
  // Browsers hide the microphone from pages that came over plain http, this computer's own aside.
  if (!('mediaDevices' in navigator)) throw new NoMicrophone('insecure')
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: constraints() })
  } catch (error) {
    if (!(error instanceof DOMException)) throw error
    switch (error.name) {
      case 'NotAllowedError':
      case 'SecurityError':
        throw new NoMicrophone('denied')
      case 'NotReadableError':
      case 'AbortError':
        throw new NoMicrophone('busy')
      default:
        throw new NoMicrophone('missing')
    }
  }
}

export function close(stream: MediaStream | null): void {
  for (const track of stream?.getTracks() ?? []) track.stop()
}

export interface Device {
  id: string
  label: string
}

export async function devices(kind: 'audioinput' | 'audiooutput'): Promise<Device[]> {
  if (!('mediaDevices' in navigator)) return []
  const all = await navigator.mediaDevices.enumerateDevices()
  return all
    .filter((each) => each.kind === kind && each.deviceId !== '' && each.deviceId !== 'communications')
    .map((each) => ({ id: each.deviceId === 'default' ? '' : each.deviceId, label: each.label }))
}
