// @ts-check
/** Who has the floor, by what the server says. No DOM. */

/** @typedef {'listening' | 'speaking' | 'paused'} Holder */

export class Floor {
  #sounding = false;
  #writing = false;
  #paused = false;

  /** @returns {Holder} */
  get holder() {
    if (this.#paused) return 'paused';
    return this.#sounding || this.#writing ? 'speaking' : 'listening';
  }

  /** Whether the agent answers in words on the screen, without a sound. */
  get writing() {
    return this.#writing && !this.#sounding;
  }

  /**
   * Take in a server event.
   * @param {any} event
   * @returns {boolean} whether the floor changed hands
   */
  apply(event) {
    const before = this.holder;
    if (event.type === 'output_audio_buffer.started') this.#sounding = true;
    else if (event.type === 'output_audio_buffer.stopped') this.#sounding = false;
    else if (event.type === 'output_audio_buffer.cleared') this.#sounding = this.#writing = false;
    else if (event.type === 'response.output_text.delta') this.#writing = true;
    else if (event.type === 'response.content_part.added') this.#writing = isText(event.part);
    else if (event.type === 'response.done') this.#writing = false;
    else if (event.type === 'voice_agent.state') this.#paused = event.state === 'paused';
    return this.holder !== before;
  }
}

/** @param {any} part */
function isText(part) {
  return part?.type === 'output_text' || part?.type === 'text';
}
