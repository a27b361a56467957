// @ts-check
/**
 * The microphone's level. Web Audio listens here and never plays: the agent is heard through an
 * <audio> element alone, because that is the only path that every browser's echo canceller knows.
 */

/** Below this a microphone is as good as silent, above LOUD_DB the meter is full. */
export const SILENT_DB = -60;
const LOUD_DB = -12;
const WINDOW_SAMPLES = 1024;

/**
 * Where a level stands on a meter, 0 to 1.
 * @param {number} levelDb dB below full scale
 */
export function meterShare(levelDb) {
  return Math.min(1, Math.max(0, (levelDb - SILENT_DB) / (LOUD_DB - SILENT_DB)));
}

export class MicrophoneMeter {
  #context = new AudioContext();
  #analyser = this.#context.createAnalyser();
  #samples = new Float32Array(WINDOW_SAMPLES);
  /** @type {MediaStreamAudioSourceNode | null} */
  #source = null;

  constructor() {
    this.#analyser.fftSize = WINDOW_SAMPLES;
  }

  /** @param {MediaStream} stream replaces the one listened to before */
  listen(stream) {
    this.#source?.disconnect();
    this.#source = this.#context.createMediaStreamSource(stream);
    this.#source.connect(this.#analyser);
    // Autoplay rules may start it suspended; the press of the call button allows it.
    void this.#context.resume();
  }

  /** The level of the newest 21 ms in dB below full scale; -Infinity for digital silence. */
  levelDb() {
    this.#analyser.getFloatTimeDomainData(this.#samples);
    let power = 0;
    for (const sample of this.#samples) power += sample * sample;
    return 10 * Math.log10(power / WINDOW_SAMPLES);
  }

  async close() {
    this.#source?.disconnect();
    await this.#context.close();
  }
}
