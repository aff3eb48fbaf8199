/**
 * The telephone in the browser: registers as long as this page is the user's telephone, rings, talks, and says in one
 * word what is the matter. What is done with a call (hold, invite, leave …) is asked of the centre, never of SIP.
 */
import { defineStore } from 'pinia'
import { computed, ref, shallowRef, watch } from 'vue'
import type { RTCSession } from 'jssip/lib/RTCSession'
import type { UA } from 'jssip'
import { useLive } from '@/live/store'
import { useSession } from '@/session'
import { settings } from '@/settings'
import { askForCredentials, useDeskPhone, type Credentials } from './credentials'
import { close, NoMicrophone, openMicrophone, type MicrophoneState } from './microphone'
import { counted, quality, type Counters, type Quality } from './quality'
import { meter, ring, sendTo } from './sound'

export type PhoneState =
  | 'off' // a telephone on the desk is used, or nobody telephones here
  | 'starting'
  | 'registered'
  | 'unreachable'
  | 'refused'
  | 'taken' // another page or computer has become the telephone
  | 'not_offered' // this engine has no browser telephones

export type LineState = 'idle' | 'ringing' | 'answering' | 'up'

/** What is used of JsSIP's event. */
interface Begun {
  originator: 'local' | 'remote'
  session: RTCSession
  request: { getHeader?: (name: string) => string }
}

const ECHO = '*43'
const RETRY_MS = 3000
/** So many new accounts in a minute: two places are fighting over one telephone, and this one gives way. */
const STEALS = 3
const CHANNEL = 'callcenter.softphone'

export const usePhone = defineStore('phone', () => {
  const live = useLive()
  const session = useSession()

  const state = ref<PhoneState>('off')
  const line = ref<LineState>('idle')
  const purpose = ref<'call' | 'echo'>('call')
  const microphone = ref<MicrophoneState>('unknown')
  const lineQuality = shallowRef<Quality | null>(null)
  const myLevel = ref(0)
  const theirLevel = ref(0)
  const ended = ref<'taken_away' | 'failed' | null>(null)

  const page = Math.random().toString(36).slice(2)
  const channel = 'BroadcastChannel' in window ? new BroadcastChannel(CHANNEL) : null
  const speaker = new Audio()
  speaker.autoplay = true

  let agent: UA | null = null
  let rtc: RTCSession | null = null
  let stream: MediaStream | null = null
  let asked: number[] = []
  let retry: ReturnType<typeof setTimeout> | null = null
  let silence: () => void = () => undefined
  let meters: (() => void)[] = []
  let looking: ReturnType<typeof setInterval> | null = null
  let notice: Notification | null = null

  const isTelephone = computed(() => state.value === 'registered')

  // --- registration ---------------------------------------------------------------------------------------

  /** Become this user's telephone; whatever page was it before gives way. */
  async function start(): Promise<void> {
    stopAgent()
    if (settings.phone === 'desk') {
      state.value = 'off'
      live.isSoftphone(false)
      await useDeskPhone()
      return
    }
    state.value = 'starting'
    asked = []
    channel?.postMessage({ took: page, user: session.session?.user.user_id })
    await checkMicrophone()
    await register()
  }

  async function register(): Promise<void> {
    const now = Date.now()
    asked = [...asked.filter((at) => now - at < 60_000), now]
    if (asked.length > STEALS) {
      giveWay()
      return
    }
    const answer = await askForCredentials()
    if (state.value === 'off' || state.value === 'taken') return
    switch (answer.kind) {
      case 'given':
        await connect(answer.credentials)
        break
      case 'not_offered':
        state.value = 'not_offered'
        break
      case 'unreachable':
        state.value = 'unreachable'
        asked.pop()
        again()
        break
    }
  }

  function again(): void {
    if (retry) clearTimeout(retry)
    retry = setTimeout(() => void register(), RETRY_MS)
  }

  async function connect(given: Credentials): Promise<void> {
    const { UA: Agent, WebSocketInterface } = (await import('jssip')).default
    stopAgent()
    agent = new Agent({
      sockets: [new WebSocketInterface(given.websocket)],
      uri: given.uri,
      authorization_user: given.user,
      password: given.password,
      session_timers: false,
      register_expires: 60,
      connection_recovery_min_interval: 1,
      connection_recovery_max_interval: 3,
      user_agent: 'callcenter console',
    })
    const mine = agent
    agent.on('registered', () => {
      state.value = 'registered'
      live.isSoftphone(true)
    })
    agent.on('disconnected', () => {
      if (mine === agent && state.value !== 'taken') state.value = 'unreachable'
    })
    agent.on('registrationFailed', (event: { response?: { status_code?: number } | null }) => {
      if (mine !== agent) return
      const code = event.response?.status_code
      if (code === 401 || code === 403 || code === 404) {
        // The account is void: the engine was restarted, or another place is the telephone now.
        stopAgent()
        state.value = 'refused'
        again()
      } else {
        state.value = 'unreachable'
      }
    })
    agent.on('newRTCSession', (event: Begun) => {
      if (event.originator === 'remote') offered(event.session, event.request)
    })
    agent.start()
  }

  function stopAgent(): void {
    if (retry) clearTimeout(retry)
    const old = agent
    agent = null
    old?.stop()
  }

  function giveWay(): void {
    stopAgent()
    state.value = 'taken'
    live.isSoftphone(false)
  }

  function stop(): void {
    stopAgent()
    over()
    state.value = 'off'
    live.isSoftphone(false)
  }

  channel?.addEventListener('message', (event: MessageEvent<{ took?: string; user?: string }>) => {
    const { took, user } = event.data
    if (took !== page && user === session.session?.user.user_id && state.value !== 'off') giveWay()
  })

  async function checkMicrophone(): Promise<void> {
    try {
      close(await openMicrophone())
      microphone.value = 'ready'
    } catch (error) {
      if (!(error instanceof NoMicrophone)) throw error
      microphone.value = error.state
    }
  }

  // --- calls ----------------------------------------------------------------------------------------------

  function offered(now: RTCSession, request: Begun['request']): void {
    if (rtc) {
      now.terminate({ status_code: 486 })
      return
    }
    rtc = now
    purpose.value = 'call'
    ended.value = null
    follow(now)
    line.value = 'ringing'
    // After a reload the centre rings again for the call that is still in hand: no second answer is asked of anybody.
    const again = live.agent?.state === 'talking' || live.agent?.state === 'held'
    if (again || request.getHeader?.('X-Callcenter-Answer') === 'auto') {
      void answer()
      return
    }
    silence = ring()
    notify()
  }

  function follow(now: RTCSession): void {
    now.on('confirmed', () => up(now))
    now.on('ended', () => over())
    now.on('failed', (event: { originator: string }) => {
      if (line.value === 'answering') ended.value = event.originator === 'remote' ? 'taken_away' : 'failed'
      over()
    })
    const heard = (connection: RTCPeerConnection): void =>
      connection.addEventListener('track', (event) => {
        const [remote] = event.streams
        if (!remote) return
        speaker.srcObject = remote
        sendTo(speaker, settings.speaker)
        speaker.play().catch(() => undefined) // autoplay is let by the click that answered
        meters.push(meter(remote, (level) => (theirLevel.value = level)))
      })
    if (now.connection as RTCPeerConnection | null) heard(now.connection)
    else
      now.on('peerconnection', (event: { peerconnection: RTCPeerConnection }) => heard(event.peerconnection))
  }

  async function answer(): Promise<void> {
    const now = rtc
    if (!now || line.value !== 'ringing') return
    line.value = 'answering'
    hush()
    try {
      stream = await openMicrophone()
    } catch (error) {
      if (!(error instanceof NoMicrophone)) throw error
      microphone.value = error.state
      if (rtc === now) line.value = 'ringing'
      return
    }
    microphone.value = 'ready'
    if (rtc !== now) {
      close(stream) // he hung up meanwhile
      stream = null
      ended.value = 'taken_away'
      return
    }
    now.answer({ mediaStream: stream, pcConfig: { iceServers: [] } })
  }

  function up(now: RTCSession): void {
    if (rtc !== now) return
    line.value = 'up'
    if (stream) meters.push(meter(stream, (level) => (myLevel.value = level)))
    applyMute()
    let before: Counters | null = null
    looking = setInterval(() => {
      void now.connection.getStats().then((report) => {
        const rows: Record<string, unknown>[] = []
        report.forEach((row) => rows.push(row as Record<string, unknown>))
        const counters = counted(rows, Date.now())
        if (counters && before && rtc === now) lineQuality.value = quality(before, counters)
        before = counters
      })
    }, 2000)
  }

  function over(): void {
    hush()
    rtc = null
    line.value = 'idle'
    close(stream)
    stream = null
    for (const stopMeter of meters) stopMeter()
    meters = []
    if (looking) clearInterval(looking)
    lineQuality.value = null
    myLevel.value = theirLevel.value = 0
    speaker.srcObject = null
  }

  function hush(): void {
    silence()
    silence = () => undefined
    notice?.close()
    notice = null
  }

  function reject(): void {
    if (rtc && line.value === 'ringing') rtc.terminate({ status_code: 603 })
  }

  /** Only this line; a call with others in it is ended by asking the centre. */
  function hangUp(): void {
    if (rtc && !rtc.isEnded()) rtc.terminate()
    else over()
  }

  async function echo(): Promise<void> {
    if (!agent || rtc) return
    try {
      stream = await openMicrophone()
    } catch (error) {
      if (!(error instanceof NoMicrophone)) throw error
      microphone.value = error.state
      return
    }
    purpose.value = 'echo'
    line.value = 'answering'
    ended.value = null
    rtc = agent.call(ECHO, { mediaStream: stream, pcConfig: { iceServers: [] } })
    follow(rtc)
  }

  function press(digit: string): void {
    // The declaration has the names of an enum that is not there at run time.
    type Options = Parameters<RTCSession['sendDTMF']>[1]
    if (line.value === 'up')
      rtc?.sendDTMF(digit, { transportType: 'RFC2833', duration: 120 } as unknown as Options)
  }

  function notify(): void {
    if (!settings.notifications || !document.hidden || !('Notification' in window)) return
    if (Notification.permission !== 'granted') return
    const call = live.call
    notice = new Notification(call?.line ?? '12345', { body: call?.caller ?? '', tag: 'callcenter-ring' })
    notice.onclick = () => window.focus()
  }

  // --- what must follow -----------------------------------------------------------------------------------

  /** The centre says who is muted; the microphone here follows at once, so that nothing leaves this computer. */
  function applyMute(): void {
    if (!rtc || line.value !== 'up' || purpose.value !== 'call') return
    if (live.leg?.muted) rtc.mute({ audio: true })
    else rtc.unmute({ audio: true })
  }
  watch(() => live.leg?.muted, applyMute)
  watch(
    () => settings.speaker,
    (device) => sendTo(speaker, device),
  )
  if ('mediaDevices' in navigator) {
    navigator.mediaDevices.addEventListener('devicechange', () => {
      const lost = stream?.getAudioTracks().some((track) => track.readyState === 'ended')
      if (lost) void replaceMicrophone()
      else if (microphone.value !== 'ready' && state.value !== 'off') void checkMicrophone()
    })
  }

  /** The headset was unplugged in the middle of a call, or another was chosen: go on with what there is. */
  async function replaceMicrophone(): Promise<void> {
    const now = rtc
    if (!now || line.value !== 'up') return
    try {
      const next = await openMicrophone()
      const [track] = next.getAudioTracks()
      const sender = now.connection.getSenders().find((each) => each.track?.kind === 'audio')
      if (rtc !== now || !track || !sender) {
        close(next)
        return
      }
      await sender.replaceTrack(track)
      close(stream)
      stream = next
      meters.push(meter(next, (level) => (myLevel.value = level)))
      microphone.value = 'ready'
      applyMute()
    } catch (error) {
      if (!(error instanceof NoMicrophone)) throw error
      microphone.value = error.state
    }
  }
  watch(
    () => [settings.microphone, settings.processing],
    () => void replaceMicrophone(),
  )

  return {
    state,
    line,
    purpose,
    microphone,
    lineQuality,
    myLevel,
    theirLevel,
    ended,
    isTelephone,
    start,
    stop,
    answer,
    reject,
    hangUp,
    echo,
    press,
    checkMicrophone,
  }
})
