// @ts-check
/** Runs in the audio thread of the recorder (recorder.js): hands on what the microphone hears. */

/** At 48 kHz 43 ms: often enough for a meter, seldom enough for a phone. */
const PIECE_SAMPLES = 2048;

// The library of the page's own scope does not know this one.
const scope = /** @type {any} */ (globalThis);

class Tap extends scope.AudioWorkletProcessor {
  #piece = new Float32Array(PIECE_SAMPLES);
  #filled = 0;

  /** @param {Float32Array[][]} inputs blocks of 128 samples; none while nothing is connected */
  process([[block]]) {
    if (!block) return true;
    this.#piece.set(block, this.#filled);
    this.#filled += block.length;
    if (this.#filled >= PIECE_SAMPLES) {
      this.port.postMessage(this.#piece, [this.#piece.buffer]);
      this.#piece = new Float32Array(PIECE_SAMPLES);
      this.#filled = 0;
    }
    return true;
  }
}

scope.registerProcessor('recorder-tap', Tap);
