// @ts-check
/**
 * One call, from the press of a button to its end; used once, then dropped. No DOM: the page is
 * one user of it.
 *
 * Events, all CustomEvent, `detail` in brackets:
 *   state       [State]               connecting, listening ⇄ speaking ⇄ paused, then ended or problem
 *   problem     [CallProblem]         before state "problem", or alone where the call goes on
 *   serverevent [object]              each event of the server, as it came
 *   sound       [MediaStream]         the agent's voice, for an <audio> element
 *   microphone  [MediaStream]         opened or changed, for a meter
 *   picture     [Picture | null]      what is shown from now on: of the camera, of the screen, nothing
 *   muted       [boolean]
 *   link        [boolean]             false: the connection broke and is being waited for
 *   statistics  [Statistics]          once a second
 */

import { openCamera, openMicrophone, openScreen, requireBrowser, stop } from './capture.js';
import { EventChannel } from './event_channel.js';
import { Floor } from './floor.js';
import { Link, openPeer } from './link.js';
import { Pictures } from './pictures.js';
import { PlayoutReports } from './playout.js';
import { asProblem, CallProblem, eventProblem } from './problems.js';
import { PageKey } from './page_key.js';
import { Signalling } from './signalling.js';

/**
 * @typedef {'idle' | 'connecting' | 'listening' | 'speaking' | 'paused' | 'ended' | 'problem'} State
 * @typedef {import('./pictures.js').PictureSource} PictureSource
 * @typedef {object} Limits
 * @property {number} connectMs from the answer until media flows
 * @property {number} graceMs that a broken connection has to come back
 * @property {number} statisticsMs between two readings
 * @typedef {object} Options
 * @property {string} [microphoneId] '' or absent: the system's default
 * @property {string} [cameraId]
 * @property {() => boolean} [hd] whether the camera's pictures shall show small print
 * @property {Record<string, unknown>} [session] sent with the offer, so that it holds from the first word on
 */

/** @type {Limits} */
const LIMITS = { connectMs: 10_000, graceMs: 5_000, statisticsMs: 1_000 };

export class Call extends EventTarget {
  #pc = /** @type {RTCPeerConnection | null} */ (null);
  #events = /** @type {EventChannel | null} */ (null);
  #floor = new Floor();
  #microphone = /** @type {MediaStream | null} */ (null);
  #microphoneSender = /** @type {RTCRtpSender | null} */ (null);
  #pictures = /** @type {Pictures | null} */ (null);
  #playout = /** @type {PlayoutReports | null} */ (null);
  #callUrl = /** @type {URL | null} */ (null);
  #options = /** @type {Options} */ ({});
  /** Device changes run one after the other, so that two quick presses cannot interleave. */
  #deviceWork = Promise.resolve();
  #link = /** @type {Link | null} */ (null);
  #deadline = 0;
  #muted = false;
  #choosingScreen = false;
  /** @type {State} */
  #state = 'idle';

  /**
   * @param {URL | string} baseUrl where the server's `v1/` lives
   * @param {Partial<Limits>} [limits]
   * @param {PageKey} [key] where the server asks for one; without, what it gives to its own page
   */
  constructor(baseUrl, limits = {}, key = new PageKey(baseUrl)) {
    super();
    this.signalling = new Signalling(baseUrl, key);
    this.limits = { ...LIMITS, ...limits };
    /** Whether it ended in order, and not by us. */
    this.endedByServer = false;
  }

  get state() {
    return this.#state;
  }

  get muted() {
    return this.#muted;
  }

  get cameraOn() {
    return this.#pictures?.source === 'camera';
  }

  get screenOn() {
    return this.#pictures?.source === 'screen';
  }

  /** Whether it has begun and not ended. */
  get live() {
    return this.#state === 'connecting' || this.talking;
  }

  /** Whether both sides are connected. */
  get talking() {
    return ['listening', 'speaking', 'paused'].includes(this.#state);
  }

  /** Whether the agent is answering in words on the screen, without a sound. */
  get writing() {
    return this.#floor.writing;
  }

  /** The longest client event that gets through, in bytes. */
  get maxMessageBytes() {
    return this.#events?.maxBytes ?? 0;
  }

  /**
   * Call. Resolves once the offer is answered, or the call has ended with a problem.
   * @param {Options} [options]
   */
  async start(options = {}) {
    if (this.#state !== 'idle') throw new Error('a Call is used once: make another one');
    this.#options = options;
    this.#enter('connecting');
    try {
      requireBrowser();
      const iceServers = this.signalling.iceServers();
      const microphone = await openMicrophone(options.microphoneId);
      if (!this.live) return stop(microphone);
      this.#useMicrophone(microphone);
      await this.#connect(microphone, await iceServers);
    } catch (error) {
      this.#finish(asProblem(error));
    }
  }

  hangUp() {
    this.#finish(null);
  }

  /** @param {boolean} muted */
  setMuted(muted) {
    this.#muted = muted;
    this.#applyMuted();
    this.#tell('muted', muted);
  }

  /**
   * Camera on, instead of the screen, or off.
   * @param {boolean} on
   * @param {string} [cameraId] another camera than so far
   */
  setCamera(on, cameraId) {
    if (cameraId !== undefined) this.#options.cameraId = cameraId;
    return this.#next(() => this.#switchCamera(on));
  }

  /**
   * Share the screen, instead of the camera, or stop sharing it. Call it within a press.
   * @param {boolean} on
   */
  async setScreen(on) {
    if (!on) return this.#next(() => this.#pictures?.drop('screen'));
    if (this.#choosingScreen || !this.live) return;
    this.#choosingScreen = true;
    try {
      const screen = await openScreen();
      if (screen) await this.#next(() => this.#showPicture('screen', screen));
      if (!this.live) stop(screen);
    } catch (error) {
      this.#report(error);
    } finally {
      this.#choosingScreen = false;
    }
  }

  /** @param {string} microphoneId '' is the system's default */
  setMicrophone(microphoneId) {
    this.#options.microphoneId = microphoneId;
    return this.#next(() => this.#switchMicrophone());
  }

  /** Open the microphone again if the system took it away, as phones do to pages in the background. */
  async reviveMicrophone() {
    const dead = this.#microphone?.getAudioTracks().some((track) => track.readyState === 'ended' || track.muted);
    if (dead) await this.#next(() => this.#switchMicrophone());
  }

  /** How loud the agent is just now, 0 to 1, without a graph on the way to the loudspeaker. */
  agentLevel() {
    return this.#speechSource()?.audioLevel ?? 0;
  }

  /**
   * Send a client event; false while there is no session to hear it.
   * @param {import('./event_channel.js').ClientEvent} event
   * @param {(refusal: import('./event_channel.js').Refusal) => void} [onRefused] told of the server's
   *   refusal, which is then no "problem"
   */
  send(event, onRefused) {
    return this.#events?.send(event, onRefused) ?? false;
  }

  /**
   * Ask for an item as it stands now, `conversation.item.retrieved`: of the agent's speech it holds
   * the words that were heard. No answer comes where the server has forgotten it.
   * @param {string} itemId
   */
  retrieve(itemId) {
    return this.send({ type: 'conversation.item.retrieve', item_id: itemId }, () => undefined);
  }

  // ---- the connection ---------------------------------------------------------------------------

  /**
   * @param {MediaStream} microphone
   * @param {RTCIceServer[]} iceServers
   */
  async #connect(microphone, iceServers) {
    const pc = openPeer(iceServers);
    this.#pc = pc;
    this.#link = new Link(pc, this.limits, {
      statistics: (statistics) => this.live && this.#tell('statistics', statistics),
      changed: (whole) => this.#tell('link', whole),
      lost: () => this.#finish(new CallProblem('server-gone')),
      restart: (sdp) => (this.#callUrl ? this.signalling.restart(this.#callUrl, sdp) : Promise.reject()),
    });
    pc.ontrack = (event) => this.#tell('sound', event.streams[0] ?? new MediaStream([event.track]));
    pc.onconnectionstatechange = () => this.#onConnection(pc.connectionState);
    // The server ends a call by closing the peer connection; the channel is the first that we hear of it.
    this.#events = new EventChannel(pc, (event) => this.applyServerEvent(event), () => this.#finish(null));
    this.#addSenders(pc, microphone);
    await pc.setLocalDescription();
    // Posted without its candidates: the server learns ours from the first packet, and gathering takes time.
    const { sdp, callUrl } = await this.signalling.offer(pc.localDescription?.sdp ?? '', this.#options.session);
    if (!this.live) return callUrl ? this.signalling.hangUp(callUrl) : undefined;
    this.#callUrl = callUrl;
    await pc.setRemoteDescription({ type: 'answer', sdp });
    if (this.#state !== 'connecting') return;
    this.#deadline = setTimeout(() => this.#finish(new CallProblem('connection-failed')), this.limits.connectMs);
  }

  /**
   * @param {RTCPeerConnection} pc
   * @param {MediaStream} microphone
   */
  #addSenders(pc, microphone) {
    const [track] = microphone.getAudioTracks();
    this.#microphoneSender = pc.addTransceiver(track, { direction: 'sendrecv', streams: [microphone] }).sender;
    this.#pictures = new Pictures(pc, (picture) => this.#tell('picture', picture));
  }

  /** @param {RTCPeerConnectionState} connection */
  #onConnection(connection) {
    if (connection === 'connected') this.#onConnected();
    else if (connection === 'closed') this.#finish(null);
    else if (connection === 'failed') this.#finish(this.#lost());
    else if (connection === 'disconnected' && this.#state !== 'connecting') this.#link?.broke();
  }

  #onConnected() {
    clearTimeout(this.#deadline);
    this.#link?.connected();
    // The first events may come before this and have begun the agent's greeting.
    if (this.#state === 'connecting') this.#enter(this.#floor.holder);
  }

  /** A connection that never was is the network's fault, one that broke is the server's absence. */
  #lost() {
    if (this.#events?.closed) return null;
    return new CallProblem(this.#state === 'connecting' ? 'connection-failed' : 'server-gone');
  }

  #speechSource() {
    const receiver = this.#pc?.getReceivers().find((each) => each.track.kind === 'audio');
    return receiver?.getSynchronizationSources()[0];
  }

  // ---- what the server says ---------------------------------------------------------------------

  /**
   * Take in one server event. Public so that a page can be shown and tested without a server.
   * @param {any} event
   */
  applyServerEvent(event) {
    if (event.type === 'session.created') this.#reportPlayout();
    else if (event.type === 'error' && !this.#events?.refuse(event)) {
      const problem = eventProblem(event.error);
      if (problem.code === 'agent-restarted') this.#finish(problem);
      else this.#tell('problem', problem);
    }
    if (this.#floor.apply(event) && this.live) this.#enter(this.#floor.holder);
    this.#tell('serverevent', event);
  }

  #reportPlayout() {
    this.#playout ??= new PlayoutReports(() => this.#speechSource(), (report) => this.send(report));
    this.#playout.speaking(this.#sounding());
  }

  #sounding() {
    return this.#state === 'speaking' && !this.writing;
  }

  // ---- devices ----------------------------------------------------------------------------------

  /** @param {() => Promise<void> | undefined} work */
  #next(work) {
    this.#deviceWork = this.#deviceWork.then(() => (this.live ? work() : undefined)).catch((error) => this.#report(error));
    return this.#deviceWork;
  }

  /**
   * A device that cannot be had is said, and the call goes on; anything else is a fault of ours.
   * @param {unknown} error
   */
  #report(error) {
    if (error instanceof CallProblem) this.#tell('problem', error);
    else reportError(error);
  }

  async #switchMicrophone() {
    // Phones lend one microphone at a time, so the old one goes first.
    stop(this.#microphone);
    const microphone = await openMicrophone(this.#options.microphoneId);
    if (!this.live) return stop(microphone);
    await this.#microphoneSender?.replaceTrack(microphone.getAudioTracks()[0]);
    this.#useMicrophone(microphone);
  }

  /** @param {MediaStream} microphone */
  #useMicrophone(microphone) {
    this.#microphone = microphone;
    this.#applyMuted();
    for (const track of microphone.getAudioTracks()) track.onended = () => this.reviveMicrophone();
    this.#tell('microphone', microphone);
  }

  #applyMuted() {
    for (const track of this.#microphone?.getAudioTracks() ?? []) track.enabled = !this.#muted;
  }

  /** @param {boolean} on */
  async #switchCamera(on) {
    // Phones lend one camera at a time, so the old one goes first.
    await this.#pictures?.drop('camera');
    if (on) await this.#showPicture('camera', await openCamera(this.#options.cameraId, this.#options.hd?.()));
  }

  /**
   * @param {PictureSource} source
   * @param {MediaStream} stream
   */
  async #showPicture(source, stream) {
    if (!this.live) return stop(stream);
    // Unplugged, or ended by the browser's own button.
    for (const track of stream.getVideoTracks()) track.onended = () => this.#next(() => this.#pictures?.drop(source));
    await this.#pictures?.show({ source, stream });
  }

  // ---- the end ----------------------------------------------------------------------------------

  /** @param {CallProblem | null} problem null is an ordinary end */
  #finish(problem) {
    if (!this.live) return;
    clearTimeout(this.#deadline);
    this.#link?.finish();
    this.endedByServer = !problem && this.#events?.closed === true;
    if (this.#callUrl && !this.endedByServer) this.signalling.hangUp(this.#callUrl);
    this.#state = problem ? 'problem' : 'ended';
    stop(this.#microphone);
    this.#pictures?.finish();
    this.#playout?.finish();
    this.#events?.close();
    this.#pc?.close();
    if (problem) this.#tell('problem', problem);
    this.#tell('state', this.#state);
  }

  /** @param {State} state */
  #enter(state) {
    this.#state = state;
    this.#playout?.speaking(this.#sounding());
    this.#tell('state', state);
  }

  /**
   * @param {string} type
   * @param {unknown} detail
   */
  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
