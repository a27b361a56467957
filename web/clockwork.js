// @ts-check
/**
 * What a call needs at regular times: once a picture of the screen, and once a second. Without a call
 * nothing runs, so that a page that stands open all day leaves the processor asleep.
 */

const SECOND_MS = 1000;

export class Clockwork {
  #onPicture;
  #onSecond;
  #picture = 0;
  #seconds = 0;

  /**
   * @param {(nowMs: number) => void} onPicture before the next picture of the screen
   * @param {() => void} onSecond
   */
  constructor(onPicture, onSecond) {
    this.#onPicture = onPicture;
    this.#onSecond = onSecond;
  }

  /** @param {boolean} wanted whether it runs from now on; to say so again changes nothing */
  run(wanted) {
    if (wanted === this.#seconds > 0) return;
    if (wanted) this.#start();
    else this.#stop();
  }

  #start() {
    this.#seconds = setInterval(this.#onSecond, SECOND_MS);
    this.#nextPicture();
  }

  #stop() {
    clearInterval(this.#seconds);
    cancelAnimationFrame(this.#picture);
    this.#seconds = 0;
  }

  #nextPicture() {
    this.#picture = requestAnimationFrame((nowMs) => {
      this.#nextPicture();
      this.#onPicture(nowMs);
    });
  }
}
