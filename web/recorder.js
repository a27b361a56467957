// @ts-check
/**
 * One recording of the microphone, as the microphone hears it; used once, then dropped. Lengths are
 * counted in samples. No DOM.
 *
 *   const recorder = new Recorder({ onLevel, onDone });
 *   await recorder.start(deviceId);
 *   recorder.stop();     // onDone: what there is; comes by itself at the longest
 *   recorder.cancel();   // gives the microphone back, and nobody is told
 */

import { openRawMicrophone, requireMicrophone, stop } from './capture.js';

export const SHORTEST_S = 3;
/** From here on a voice is cloned well. */
export const GOOD_S = 5;
export const LONGEST_S = 15;

/**
 * @typedef {object} Take
 * @property {Float32Array[]} pieces mono, −1 to 1
 * @property {number} rateHz
 * @property {number} seconds
 *
 * @typedef {object} Uses
 * @property {(levelDb: number, seconds: number) => void} onLevel dB below full scale; so far
 * @property {(take: Take) => void} onDone
 */

export class Recorder {
  #uses;
  /** @type {MediaStream | null} */
  #stream = null;
  /** @type {AudioContext | null} */
  #context = null;
  /** @type {Float32Array[]} */
  #pieces = [];
  #samples = 0;
  #over = false;

  /** @param {Uses} uses */
  constructor(uses) {
    this.#uses = uses;
  }

  /**
   * Resolves once it records, or was cancelled meanwhile. Call it within a press.
   * @param {string} deviceId '' is the system's default
   * @throws {import('./problems.js').CallProblem} of the microphone
   */
  async start(deviceId) {
    requireMicrophone();
    try {
      this.#stream = await openRawMicrophone(deviceId);
      if (this.#over) return this.#release();
      await this.#connect(this.#stream);
    } catch (error) {
      // Given up while the browser was still asking, or loading.
      if (this.#over) return this.#release();
      this.cancel();
      throw error;
    }
  }

  stop() {
    if (this.#over || !this.#context) return;
    const rateHz = this.#context.sampleRate;
    this.cancel();
    this.#uses.onDone({ pieces: this.#pieces, rateHz, seconds: this.#samples / rateHz });
  }

  cancel() {
    this.#over = true;
    this.#release();
  }

  /** @param {MediaStream} stream */
  async #connect(stream) {
    const context = (this.#context = new AudioContext());
    await context.audioWorklet.addModule(new URL('recorder_worklet.js', import.meta.url));
    if (this.#over) return;
    const tap = new AudioWorkletNode(context, 'recorder-tap', { numberOfOutputs: 0, channelCount: 1, channelCountMode: 'explicit' });
    tap.port.onmessage = ({ data }) => this.#onPiece(data, context.sampleRate);
    context.createMediaStreamSource(stream).connect(tap);
    // Unplugged, or taken back by the user: what was said until then may do.
    for (const track of stream.getAudioTracks()) track.onended = () => this.stop();
    await context.resume();
  }

  /**
   * @param {Float32Array} piece
   * @param {number} rateHz
   */
  #onPiece(piece, rateHz) {
    if (this.#over) return;
    const left = Math.round(LONGEST_S * rateHz) - this.#samples;
    const kept = piece.subarray(0, left);
    this.#pieces.push(kept);
    this.#samples += kept.length;
    this.#uses.onLevel(levelDb(piece), this.#samples / rateHz);
    if (kept.length === left) this.stop();
  }

  #release() {
    stop(this.#stream);
    const context = this.#context;
    if (context && context.state !== 'closed') void context.close();
  }
}

/** @param {Float32Array} samples */
function levelDb(samples) {
  let power = 0;
  for (const sample of samples) power += sample * sample;
  return 10 * Math.log10(power / samples.length);
}
