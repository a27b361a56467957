// @ts-check
/**
 * Sound that comes in pieces, played without a gap: each piece begins at the very sample at which the
 * one before ends. Where they come late there is a pause, and nothing is skipped. No DOM.
 *
 *   const player = new PcmPlayer(onSilence);
 *   player.push(base64);   // 16 bit, 24 kHz, mono
 *   player.finish();       // nothing comes any more; onSilence when all was played
 *   player.stop();         // at once; onSilence
 */

import { useLoudspeaker } from './voice_sample.js';

const RATE_HZ = 24_000;
/** Before the first piece, and after a pause: so much later may the next one come. */
const LEAD_S = 0.15;
/** Of what waits to be heard; an answer that is longer ends there. */
const MAX_WAITING_S = 600;
const FULL_SCALE = 32_768;

export class PcmPlayer {
  // At the rate of the sound: resampled piece by piece, it would click where they meet.
  #context = new AudioContext({ sampleRate: RATE_HZ });
  #onSilence;
  /** @type {Set<AudioBufferSourceNode>} */
  #sources = new Set();
  /** Where the next piece begins, in samples of the context's clock. */
  #next = 0;
  #finished = false;
  /** A byte that waits for the other half of its sample. */
  #odd = new Uint8Array();
  playing = true;

  /** @param {() => void} onSilence */
  constructor(onSilence) {
    this.#onSilence = onSilence;
    void useLoudspeaker(this.#context);
    void this.#context.resume();
  }

  /** @param {string} data base64 */
  push(data) {
    const samples = this.#samples(data);
    if (!samples.length || !this.playing) return;
    const now = Math.ceil(this.#context.currentTime * RATE_HZ);
    if (this.#next <= now) this.#next = now + LEAD_S * RATE_HZ;
    if (this.#next - now > MAX_WAITING_S * RATE_HZ) return;
    const buffer = this.#context.createBuffer(1, samples.length, RATE_HZ);
    buffer.copyToChannel(samples, 0);
    this.#schedule(buffer);
    this.#next += samples.length;
  }

  finish() {
    this.#finished = true;
    this.#settle();
  }

  stop() {
    if (!this.playing) return;
    this.playing = false;
    for (const source of this.#sources) source.onended = null;
    this.#sources.clear();
    void this.#context.close();
    this.#onSilence();
  }

  /** @param {AudioBuffer} buffer */
  #schedule(buffer) {
    const source = new AudioBufferSourceNode(this.#context, { buffer });
    source.connect(this.#context.destination);
    source.onended = () => {
      this.#sources.delete(source);
      this.#settle();
    };
    source.start(this.#next / RATE_HZ);
    this.#sources.add(source);
  }

  #settle() {
    if (this.#finished && this.#sources.size === 0) this.stop();
  }

  /** @param {string} data */
  #samples(data) {
    const bytes = Uint8Array.from([...this.#odd, ...[...atob(data)].map((each) => each.charCodeAt(0))]);
    const count = bytes.length >> 1;
    this.#odd = bytes.slice(2 * count);
    const view = new DataView(bytes.buffer);
    return Float32Array.from({ length: count }, (_, index) => view.getInt16(2 * index, true) / FULL_SCALE);
  }
}
