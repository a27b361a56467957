// @ts-check
/** A short sound, played once through the chosen loudspeaker. */

import { rememberedDevice } from './devices.js';

export class Sample {
  #audio = new Audio();
  #url = '';
  #onEnd;

  /** @param {() => void} onEnd also when it was stopped, or cannot be played */
  constructor(onEnd) {
    this.#onEnd = onEnd;
    for (const type of ['ended', 'error']) this.#audio.addEventListener(type, () => this.stop());
  }

  /** @param {Blob} sound */
  async play(sound) {
    this.#url = URL.createObjectURL(sound);
    this.#audio.src = this.#url;
    await useLoudspeaker(this.#audio);
    // It may have been stopped meanwhile.
    if (!this.#url) return;
    try {
      await this.#audio.play();
    } catch (error) {
      if (!(error instanceof DOMException)) throw error;
      this.stop();
    }
  }

  stop() {
    if (!this.#url) return;
    this.#audio.pause();
    URL.revokeObjectURL(this.#url);
    this.#url = '';
    this.#onEnd();
  }
}

/**
 * The chosen one, where the browser can and it is still plugged in.
 * @param {HTMLAudioElement | AudioContext} sink
 */
export async function useLoudspeaker(sink) {
  const able = /** @type {{setSinkId?: (id: string) => Promise<void>}} */ (sink);
  const deviceId = rememberedDevice('audiooutput');
  if (!able.setSinkId || !deviceId) return;
  try {
    await able.setSinkId(deviceId);
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
  }
}
