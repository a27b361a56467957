// @ts-check
/**
 * The far end of every measurement: a client whose microphone, room and camera are made up, which
 * records what it plays. Driven from outside through `window.meter`.
 */

import { PlayoutReports } from './playout.js';

const RATE_HZ = 48_000;
const PICTURE_MS = 500;
const CODE_COLUMNS = 6;
const CODE_ROWS = 4;

class Meter {
  #context = new AudioContext({ sampleRate: RATE_HZ, latencyHint: 'interactive' });
  #microphone = this.#context.createMediaStreamDestination();
  #user = this.#context.createGain();
  #room = this.#context.createGain();
  /** @type {AudioWorkletNode | null} */ #recorder = null;
  /** @type {{played: Float32Array, said: Float32Array, stamps: Float64Array}[]} */ #blocks = [];
  /** @type {AudioBuffer | null} */ #words = null;
  /** @type {RTCPeerConnection | null} */ #peer = null;
  /** @type {RTCDataChannel | null} */ #channel = null;
  /** @type {{at_ms: number, event: any}[]} */ events = [];

  /**
   * Connect to the server that answers offers at `url`. Resolves when sound can flow.
   * @param {{url: string, camera?: boolean}} options
   */
  async connect({ url, camera = false }) {
    await this.#context.audioWorklet.addModule('recorder.js');
    await this.#context.resume();
    this.#recorder = new AudioWorkletNode(this.#context, 'recorder', {
      numberOfInputs: 2, numberOfOutputs: 0,
    });
    this.#recorder.port.onmessage = ({ data }) => this.#blocks.push(data);
    this.#user.connect(this.#microphone);
    this.#user.connect(this.#recorder, 0, 1);
    this.#peer = new RTCPeerConnection();
    this.#peer.ontrack = ({ track }) => track.kind === 'audio' && this.#listen(track);
    this.#peer.addTrack(this.#microphone.stream.getAudioTracks()[0], this.#microphone.stream);
    if (camera) this.#peer.addTrack(showTime());
    this.#openChannel();
    await this.#shakeHands(url);
  }

  /** Begin a fresh recording. */
  record() {
    this.#blocks = [];
  }

  /** What was recorded: 16-bit samples and the stamps of each 128, as base64. */
  recorded() {
    const { played, said } = { played: this.#joined('played'), said: this.#joined('said') };
    const stamps = Float64Array.from(this.#blocks.flatMap((block) => [...block.stamps]));
    return { played: base64(played), said: base64(said), stamps: base64(stamps) };
  }

  /**
   * Take what is to be said next.
   * @param {string} sound base64 of 16-bit samples at 48 kHz
   */
  load(sound) {
    this.#words = this.#buffer(sound);
  }

  /**
   * Speak what was loaded into the microphone. Resolves when the last sample was said.
   * @param {boolean} wait
   */
  async speak(wait = true) {
    const source = this.#context.createBufferSource();
    source.buffer = this.#words;
    source.connect(this.#user);
    const ended = new Promise((done) => { source.onended = done; });
    source.start();
    if (wait) await ended;
  }

  /**
   * Let the microphone hear the loudspeaker through a room, and some noise.
   * @param {{delay_s: number, gain: number, response: string, noise: string}} room
   */
  openRoom({ delay_s, gain, response, noise }) {
    const delay = this.#context.createDelay(1);
    delay.delayTime.value = delay_s;
    const walls = this.#context.createConvolver();
    walls.normalize = false;
    walls.buffer = this.#buffer(response);
    const level = this.#context.createGain();
    level.gain.value = gain;
    this.#room.connect(delay).connect(walls).connect(level).connect(this.#microphone);
    const hiss = this.#context.createBufferSource();
    hiss.buffer = this.#buffer(noise);
    hiss.loop = true;
    hiss.connect(this.#microphone);
    hiss.start();
  }

  /** @param {object} event */
  send(event) {
    if (this.#channel?.readyState === 'open') this.#channel.send(JSON.stringify(event));
  }

  /** Facts of the browser's jitter buffer. */
  async statistics() {
    const report = await this.#peer?.getStats();
    return [...(report?.values() ?? [])].find(
      (part) => part.type === 'inbound-rtp' && part.kind === 'audio',
    );
  }

  async close() {
    this.#peer?.close();
    await this.#context.close();
  }

  /** @param {MediaStreamTrack} track */
  #listen(track) {
    const stream = new MediaStream([track]);
    // A remote stream that no element plays is not decoded.
    const speaker = /** @type {HTMLAudioElement} */ (document.querySelector('#speaker'));
    speaker.srcObject = stream;
    const source = this.#context.createMediaStreamSource(stream);
    if (this.#recorder) source.connect(this.#recorder, 0, 0);
    source.connect(this.#room);
  }

  #openChannel() {
    const channel = /** @type {RTCPeerConnection} */ (this.#peer).createDataChannel('oai-events');
    const playing = () => this.#peer?.getReceivers()
      .find(({ track }) => track.kind === 'audio')?.getSynchronizationSources()[0];
    const reports = new PlayoutReports(playing, (report) => this.send(report));
    channel.onmessage = ({ data }) => {
      const event = JSON.parse(data);
      this.events.push({ at_ms: Date.now(), event });
      if (event.type === 'output_audio_buffer.started') reports.speaking(true);
      else if (event.type.startsWith('output_audio_buffer.')) reports.speaking(false);
    };
    this.#channel = channel;
  }

  /** @param {string} url */
  async #shakeHands(url) {
    const peer = /** @type {RTCPeerConnection} */ (this.#peer);
    await peer.setLocalDescription();
    await new Promise((done) => {
      peer.onicegatheringstatechange = () => peer.iceGatheringState === 'complete' && done(0);
      setTimeout(done, 1000);
    });
    const headers = { 'Content-Type': 'application/sdp' };
    const offer = peer.localDescription?.sdp;
    const answer = await fetch(url, { method: 'POST', headers, body: offer });
    if (!answer.ok) throw new Error(await answer.text());
    const connected = new Promise((done, fail) => {
      peer.onconnectionstatechange = () => {
        if (peer.connectionState === 'connected') done(0);
        else if (peer.connectionState === 'failed') fail(new Error('no connection'));
      };
    });
    await peer.setRemoteDescription({ type: 'answer', sdp: await answer.text() });
    await connected;
  }

  /** @param {'played' | 'said'} which */
  #joined(which) {
    const samples = new Int16Array(this.#blocks.reduce((sum, block) => sum + block[which].length, 0));
    let at = 0;
    for (const block of this.#blocks) {
      for (const sample of block[which]) {
        samples[at] = Math.max(-32768, Math.min(32767, Math.round(sample * 32768)));
        at += 1;
      }
    }
    return samples;
  }

  /** @param {string} sound */
  #buffer(sound) {
    const bytes = Uint8Array.from(atob(sound), (letter) => letter.charCodeAt(0));
    const samples = Float32Array.from(new Int16Array(bytes.buffer), (sample) => sample / 32768);
    const buffer = this.#context.createBuffer(1, samples.length, RATE_HZ);
    buffer.copyToChannel(samples, 0);
    return buffer;
  }
}

/** A camera that shows, in black and white fields, the milliseconds at which it drew them. */
function showTime() {
  const canvas = /** @type {HTMLCanvasElement} */ (document.querySelector('#camera'));
  const brush = /** @type {CanvasRenderingContext2D} */ (canvas.getContext('2d'));
  const track = /** @type {CanvasCaptureMediaStreamTrack} */ (
    canvas.captureStream(0).getVideoTracks()[0]);
  const width = canvas.width / CODE_COLUMNS;
  const height = canvas.height / CODE_ROWS;
  const draw = () => {
    const code = Date.now() % 2 ** (CODE_COLUMNS * CODE_ROWS);
    for (let bit = 0; bit < CODE_COLUMNS * CODE_ROWS; bit += 1) {
      brush.fillStyle = Math.floor(code / 2 ** bit) % 2 ? 'white' : 'black';
      const [column, row] = [bit % CODE_COLUMNS, Math.floor(bit / CODE_COLUMNS)];
      brush.fillRect(column * width, row * height, width, height);
    }
    track.requestFrame();
  };
  draw();
  setInterval(draw, PICTURE_MS);
  return track;
}

/** @param {ArrayBufferView} data */
function base64(data) {
  const bytes = new Uint8Array(data.buffer);
  const pieces = [];
  for (let at = 0; at < bytes.length; at += 32_768) {
    pieces.push(String.fromCharCode(...bytes.subarray(at, at + 32_768)));
  }
  return btoa(pieces.join(''));
}

/** @type {any} */ (window).meter = new Meter();
