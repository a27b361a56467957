// @ts-check
/**
 * The two buttons that give the user the floor: Pause, and Listen, which is held (or pressed once to
 * stay), by pointer, by keyboard, and by the Space bar from anywhere but a field.
 */

/** A press that is shorter stays on until the next one. */
const HOLD_MS = 350;

const LISTEN_LABEL = 'Hold: just listen';
const LATCHED_LABEL = 'Only listening: press to end';

/** @typedef {Pick<import('./call.js').Call, 'send' | 'talking' | 'state'>} Line */

export class FloorButtons {
  #line;
  #pause;
  #listen;
  #show;
  #listening = false;
  #pressedMs = 0;
  /** The listening that a press found: if it was on, the press ends it. */
  #wasOn = false;

  /**
   * @param {HTMLElement} pause
   * @param {HTMLElement} listen
   * @param {() => Line} line the running call
   * @param {(listening: boolean) => void} show that the agent was told to listen only
   */
  constructor(pause, listen, line, show) {
    this.#line = line;
    this.#pause = pause;
    this.#listen = listen;
    this.#show = show;
    pause.addEventListener('click', () => this.togglePause());
    listen.addEventListener('pointerdown', (event) => this.#onPress(event));
    for (const end of ['pointerup', 'pointercancel']) listen.addEventListener(end, () => this.#onRelease());
    // Of the keyboard and of assistive technology, which press without a pointer.
    listen.addEventListener('click', (event) => event.detail === 0 && this.#toggleListen());
    window.addEventListener('blur', () => this.listen(false));
  }

  /** Pause, or go on; the button changes when the server says so. */
  togglePause() {
    const { state } = this.#line();
    this.#line().send({ type: state === 'paused' ? 'voice_agent.resume' : 'voice_agent.pause' });
  }

  /** @param {boolean} on */
  listen(on) {
    if (on === this.#listening) return;
    if (on && !this.#line().talking) return;
    this.#listening = on;
    if (this.#line().talking) this.#line().send({ type: 'voice_agent.listen', on });
    this.#listen.setAttribute('aria-pressed', String(on));
    if (!on) label(this.#listen, LISTEN_LABEL);
    this.#show(on);
  }

  /** After each change of the call's state. */
  callChanged() {
    const { talking, state } = this.#line();
    this.#pause.hidden = this.#listen.hidden = !talking;
    if (!talking) this.listen(false);
    const paused = state === 'paused';
    this.#pause.setAttribute('aria-pressed', String(paused));
    label(this.#pause, paused ? 'Resume' : 'Pause');
  }

  #toggleListen() {
    this.listen(!this.#listening);
    this.#latch();
  }

  /** It stays on without being held: say so, and how it ends. */
  #latch() {
    if (this.#listening) label(this.#listen, LATCHED_LABEL);
  }

  /** @param {PointerEvent} event */
  #onPress(event) {
    if (event.button !== 0) return;
    this.#listen.setPointerCapture(event.pointerId);
    this.#pressedMs = event.timeStamp;
    this.#wasOn = this.#listening;
    this.listen(true);
  }

  #onRelease() {
    const held = performance.now() - this.#pressedMs > HOLD_MS;
    if (held || this.#wasOn) this.listen(false);
    else this.#latch();
  }
}

/**
 * @param {HTMLElement} button
 * @param {string} text
 */
function label(button, text) {
  const place = button.querySelector('.label');
  if (place) place.textContent = text;
}

/**
 * Whether Space means what is focused: a field, or a button that the keyboard went to. A button that
 * was clicked keeps the focus, but nobody means it any more.
 */
export class SpaceBar {
  #clicked = /** @type {Element | null} */ (null);
  #held = false;

  /**
   * @param {(held: boolean) => void} tell
   * @param {() => boolean} wanted whether it means anything now
   */
  constructor(tell, wanted) {
    document.addEventListener('pointerdown', (event) => {
      this.#clicked = event.target instanceof Element ? event.target.closest('button, summary, a, [tabindex]') : null;
    });
    document.addEventListener('keydown', (event) => {
      if (event.key === 'Tab') this.#clicked = null;
      if (event.key !== ' ' || (!this.#held && (!wanted() || this.#isTaken(event)))) return;
      event.preventDefault();
      if (!this.#held) tell((this.#held = true));
    });
    document.addEventListener('keyup', (event) => {
      if (event.key !== ' ' || !this.#held) return;
      // Firefox presses a focused button on release.
      event.preventDefault();
      tell((this.#held = false));
    });
    // Let go of while another window had the keyboard.
    window.addEventListener('blur', () => this.#held && tell((this.#held = false)));
  }

  /** @param {KeyboardEvent} event */
  #isTaken(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return true;
    const { activeElement } = document;
    return activeElement !== null && activeElement !== document.body && activeElement !== this.#clicked;
  }
}
