// @ts-check
/**
 * Records two inputs side by side, what the loudspeaker plays and what the user says, and stamps
 * each block of 128 samples with the time on the clock that the server shares.
 */

const BLOCKS = 8;
const BLOCK = 128;

class Recorder extends AudioWorkletProcessor {
  #played = new Float32Array(BLOCKS * BLOCK);
  #said = new Float32Array(BLOCKS * BLOCK);
  #stamps = new Float64Array(BLOCKS);
  #filled = 0;

  /** @param {Float32Array[][]} inputs */
  process([played, said]) {
    const at = this.#filled * BLOCK;
    this.#copy(played, this.#played, at);
    this.#copy(said, this.#said, at);
    this.#stamps[this.#filled] = Date.now();
    this.#filled += 1;
    if (this.#filled === BLOCKS) this.#hand();
    return true;
  }

  /** The mean of the channels, or silence while nothing is connected. */
  #copy(channels, into, at) {
    into.fill(0, at, at + BLOCK);
    for (const channel of channels) {
      for (let i = 0; i < BLOCK; i += 1) into[at + i] += channel[i] / channels.length;
    }
  }

  #hand() {
    this.#filled = 0;
    this.port.postMessage({
      played: this.#played.slice(), said: this.#said.slice(), stamps: this.#stamps.slice(),
    });
  }
}

registerProcessor('recorder', Recorder);
