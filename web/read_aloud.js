// @ts-check
/**
 * Chat answers, read aloud as they come: #read-aloud asks for it, and is remembered.
 *
 *   #read-aloud        checkbox; its label is hidden where the engine reads no texts
 */

import { recall, remember } from './devices.js';
import { PcmPlayer } from './pcm_player.js';
import { byId } from './stage.js';

/** @typedef {import('./settings.js').Choices} Choices */

export class ReadAloud {
  #choices;
  #toggle = /** @type {HTMLInputElement} */ (byId('read-aloud'));
  /** @type {PcmPlayer | null} */
  #player = null;

  /** @param {Choices} choices */
  constructor(choices) {
    this.#choices = choices;
    this.#toggle.checked = recall('read-aloud') === 'on';
    this.#toggle.addEventListener('change', () => {
      remember('read-aloud', this.#toggle.checked ? 'on' : 'off');
      if (!this.#toggle.checked) this.stop();
    });
  }

  /** @param {boolean} able whether the engine can */
  offer(able) {
    /** @type {HTMLElement} */ (byId('read-aloud').closest('label')).hidden = !able;
  }

  /** What the request for an answer says of it. */
  request() {
    if (!this.#wanted) return {};
    const { voice } = this.#choices;
    return { modalities: ['text', 'audio'], audio: { ...(voice ? { voice } : {}), format: 'pcm16' } };
  }

  /**
   * An answer begins; what is left of the one before falls silent. Call it within a press.
   * @param {() => void} onSilence all of it was heard, or it was stopped
   */
  begin(onSilence) {
    this.stop();
    if (this.#wanted) this.#player = new PcmPlayer(onSilence);
  }

  /** @param {string} data the next of its sound: 16 bit, 24 kHz, mono, as base64 */
  push(data) {
    // Switched off meanwhile: it still comes, and is not heard.
    this.#player?.push(data);
  }

  /** The answer is complete; what is left of it is played. */
  finish() {
    this.#player?.finish();
  }

  stop() {
    this.#player?.stop();
    this.#player = null;
  }

  /** Whether there is something to be heard, or it may yet come. */
  get playing() {
    return this.#player?.playing === true;
  }

  get #wanted() {
    return this.#toggle.checked && this.#choices.abilities.text_to_speech === true;
  }
}
