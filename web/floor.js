// @ts-check
/** Who has the floor, by what the server says. No DOM. */

/** @typedef {'listening' | 'speaking' | 'paused'} Holder */

const ENDS = new Set(['output_audio_buffer.stopped', 'output_audio_buffer.cleared']);

export class Floor {
  /** What the server said last. */
  #state = 'listening';
  #sounding = false;

  /** @returns {Holder} */
  get holder() {
    if (this.#state === 'paused') return 'paused';
    return this.#sounding || this.#state === 'speaking' ? 'speaking' : 'listening';
  }

  /** Whether the agent answers in words on the screen, without a sound. */
  get writing() {
    return this.#state === 'speaking' && !this.#sounding;
  }

  /**
   * Take in a server event.
   * @param {any} event
   * @returns {boolean} whether the floor changed hands
   */
  apply(event) {
    const before = this.holder;
    if (event.type === 'output_audio_buffer.started') this.#sounding = true;
    else if (event.type === 'voice_agent.state') this.#state = event.state;
    else if (ENDS.has(event.type)) this.#fallSilent();
    return this.holder !== before;
  }

  /** Nothing is written without a sound in the moment before the server tells the new state. */
  #fallSilent() {
    this.#sounding = false;
    if (this.#state === 'speaking') this.#state = 'listening';
  }
}
