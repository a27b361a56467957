// @ts-check
/** Keep the screen on during a call: a phone that locks itself takes the microphone away. */

export class WakeLock {
  /** @type {WakeLockSentinel | null} */
  #lock = null;
  #wanted = false;

  /** Ask for it; again after the page was hidden, because browsers release it then. */
  async hold() {
    this.#wanted = true;
    if (!('wakeLock' in navigator) || document.visibilityState !== 'visible') return;
    try {
      const lock = await navigator.wakeLock.request('screen');
      if (this.#wanted) this.#lock = lock;
      else await lock.release();
    } catch (error) {
      // Refused to save power: the call works without it.
      if (!(error instanceof DOMException)) throw error;
    }
  }

  async release() {
    this.#wanted = false;
    await this.#lock?.release();
    this.#lock = null;
  }
}
